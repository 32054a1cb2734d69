"""The Dockerfiles: what they promise, and what the serving image does when its instructions are carried out."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from deploy import serve_like_the_image as like_the_image
from serving.settings import Settings
from tests import tiny_model
from tests.project import ROOT

DOCKERFILES = [ROOT / "Dockerfile", ROOT / "mlflow/Dockerfile"]
SERVING = like_the_image.stages()["serving"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_stage_starts_from_one_version_of_python(path: Path) -> None:
    bases = set(re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE))
    assert {re.sub("-slim", "", base) for base in bases} == {"python:3.11.14-bookworm"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_come_from_locks_that_exist_and_hold_hashes(path: Path) -> None:
    text = path.read_text().replace("\\\n", "")
    installs = re.findall(r"pip (?:--python \S+ )?install (.*?)(?:&&|$)", text, re.MULTILINE)
    assert installs
    assert all("--require-hashes -r /build/" in install for install in installs)
    choices = re.findall(r"LOCK=(\w+)", text)
    copied = re.findall(r"^COPY (\S+\.txt) /build/", text, re.MULTILINE)
    locks = {name.replace("${LOCK}", choice) for name in copied for choice in choices or [""]}
    for lock in locks:
        assert "--hash=sha256:" in (path.parent / lock).read_text(), lock


def test_the_serving_image_takes_only_the_server_from_the_repository() -> None:
    sources = {rest.split()[0] for name, rest in SERVING if name == "COPY" and "--from" not in rest}
    assert sources == {"leukdetect", "serving"}


def test_whatever_is_copied_is_sent_to_the_builder() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for source in copied:
        assert any(Path(source).match(pattern) for pattern in allowed), source


def test_the_image_sets_settings_that_exist_and_exposes_the_port_it_sets() -> None:
    environment = like_the_image.environment(SERVING)
    settings = {f"LEUKDETECT_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in environment if name.startswith("LEUKDETECT_")} <= settings
    assert environment["LEUKDETECT_PORT"] == like_the_image.said(SERVING, "EXPOSE")
    assert environment["LEUKDETECT_CACHE_DIR"] == like_the_image.said(SERVING, "VOLUME")
    assert environment["LEUKDETECT_HOST"] == "0.0.0.0", "a container's loopback is reached by nobody"


def test_the_server_itself_gets_the_signals() -> None:
    assert json.loads(like_the_image.said(SERVING, "ENTRYPOINT"))[1:] == ["-m", "serving"]
    assert "CMD" not in dict(SERVING)


@pytest.mark.slow
def test_the_image_is_small(image: Path) -> None:
    assert like_the_image.megabytes(image) + like_the_image.BASE_MB <= like_the_image.LIMIT_MB


@pytest.mark.slow
def test_the_image_holds_neither_training_nor_what_installs_packages(image: Path) -> None:
    packages = {path.name for path in (image / "opt/venv/lib/python3.11/site-packages").iterdir()}
    assert {"onnxruntime", "fastapi", "mlflow"} <= packages
    assert not packages & {"tensorflow", "keras", "pandas", "sklearn", "sqlalchemy", "pip", "setuptools"}
    assert {path.name for path in (image / "app").iterdir()} == {"leukdetect", "serving"}


@pytest.mark.slow
def test_in_the_image_mlflow_is_the_package(image: Path) -> None:
    command = [*like_the_image.inside(image, {}), "/opt/venv/bin/python", "-c", "import mlflow; print(mlflow.__file__)"]
    assert "site-packages" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_image_serves_as_an_unknown_user_without_rights_on_a_read_only_root(image: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    tiny_model.write(model)
    with like_the_image.serving(image, {"LEUKDETECT_MODEL": "/model.onnx"}, "--ro-bind", str(model), "/model.onnx") as (
        url,
        process,
    ):
        with urllib.request.urlopen(f"{url}/predict", tiny_model.jpeg((200, 60, 60))) as answer:
            assert json.load(answer)["class"] == "benign"
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        assert status["NSpid"].split()[-1] == "1", "the server is process 1, as in a container"
        assert int(status["CapEff"], 16) == 0
    # that SIGTERM ended it with exit code 0 is checked by serving() itself
    assert (image / "var/lib/leukdetect/feedback.db").exists(), "the volume is where it writes"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/x", "/app/x", "/app/serving/x", "/opt/venv/x", "/var/x"])
def test_nothing_but_the_volume_can_be_written(image: Path, path: str) -> None:
    allowed = "open('/var/lib/leukdetect/x', 'w'); open('/tmp/x', 'w'); import os; assert os.getuid() == 10001"
    script = f"{allowed}; open({path!r}, 'w')"
    command = [*like_the_image.inside(image, {}), "/opt/venv/bin/python", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == f"OSError: [Errno 30] Read-only file system: '{path}'"
