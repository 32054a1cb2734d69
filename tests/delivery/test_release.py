"""A release: the files beside the images, the images as they are published, and one version everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import leukdetect
from deploy import release
from leukdetect.model_file import load
from leukdetect.registry import Located
from serving.app import create_app
from serving.models.served import Models
from serving.settings import Settings
from tests import tiny_model
from tests.project import ROOT

TAG = f"v{leukdetect.__version__}"
CHANGELOG = f"""# Changelog

## Unreleased

- to come

## {leukdetect.__version__} (a day)

### Added

- a thing

## 0.0.9

- another
"""


def publish(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["release", *arguments])
    release.main()


def test_the_page_gets_wheel_api_and_the_changelogs_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    for name in release.NAMED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(release, "ROOT", tmp_path)
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))  # which needs setuptools
    publish(monkeypatch, TAG, "--out", str(tmp_path / "dist"))
    assert (tmp_path / "dist/notes.md").read_text() == "### Added\n\n- a thing\n"
    assert json.loads((tmp_path / "dist/openapi.json").read_text())["info"]["version"] == leukdetect.__version__
    assert commands == [
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", f"{tmp_path}/dist", str(tmp_path)]
    ]
    with pytest.raises(SystemExit, match=r"the tag is v9\.9\.9, and leukdetect/__init__\.py says \d"):
        publish(monkeypatch, "v9.9.9", "--out", str(tmp_path / "none"))
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG.replace(f"## {leukdetect.__version__}", "## 0.0.1"))
    with pytest.raises(SystemExit, match="has no section"):
        publish(monkeypatch, TAG, "--out", str(tmp_path / "none"))
    (tmp_path / release.NAMED[0]).write_text("image: leukdetect-serving:0.0.9")
    with pytest.raises(SystemExit, match=r"deploy/compose\.yaml names another version"):
        publish(monkeypatch, TAG, "--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", release.NAMED)
def test_what_names_an_image_names_the_version(name: str) -> None:
    assert set(release.versions((ROOT / name).read_text())) == {leukdetect.__version__}


def test_the_published_api_is_a_running_servers_but_for_its_model(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = create_app(Settings(), Models(load(Located(tmp_path / "m.onnx"), "fp32", 1)))
    app.state.service = type("Service", (), {"models": Models(load(Located(tmp_path / "m.onnx"), "fp32", 1))})
    served, published = app.openapi(), release.openapi()
    del served["components"]["schemas"]["Prediction"]["examples"]
    assert served.pop("info")["title"] == published.pop("info")["title"]
    assert served == published


# The scripts of the workflows, with what they call stood in for


def stand_in(folder: Path, **programs: str) -> dict[str, str]:
    """An environment whose PATH has these scripts first; each call is a line of `calls`."""
    (folder / "bin").mkdir()
    for name, script in programs.items():
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{script}\n')
        file.chmod(0o755)
    return os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def script(name: str, folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / ".github" / name), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_an_image_is_pushed_with_labels_sbom_and_provenance_and_its_digest_is_signed(tmp_path: Path) -> None:
    digest = "sha256:" + "1" * 64
    metadata = json.dumps({"containerimage.digest": digest})
    build = f"case $1$2 in login*) cat > {tmp_path}/password ;; *build) echo '{metadata}' > metadata.json ;; esac"
    environment = stand_in(tmp_path, docker=build, cosign="", git="echo 2026-01-02T03:04:05+00:00") | {
        "GITHUB_REF_NAME": TAG, "GITHUB_REPOSITORY": "Clinic/LeukDetect", "GITHUB_ACTOR": "ana", "GITHUB_SHA": "abc",
        "GITHUB_SERVER_URL": "https://git.example", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "REGISTRY_TOKEN": "a-secret",
    }  # fmt: skip
    done = script("publish.sh", tmp_path, environment, "serving")
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    [build] = [line for line in calls.splitlines() if line.startswith("docker buildx build")]
    image = f"ghcr.io/clinic/leukdetect-serving:{leukdetect.__version__}"
    for argument in (
        *("--target serving", "--push", f"--tag {image}", "--sbom=true", "--provenance=mode=max"),
        *("--build-arg SOURCE_COMMIT=abc", "--label=org.opencontainers.image.revision=abc"),
        f"--label=org.opencontainers.image.version={leukdetect.__version__}",
        "--label=org.opencontainers.image.source=https://git.example/Clinic/LeukDetect",
    ):
        assert argument in build
    assert calls.splitlines()[-1] == f"cosign sign --yes ghcr.io/clinic/leukdetect-serving@{digest}"
    assert (tmp_path / "summary").read_text() == f"`{image}@{digest}`\n"
    assert "a-secret" not in calls + done.stdout + done.stderr
    assert (tmp_path / "password").read_text().strip() == "a-secret"
    assert "ARG SOURCE_COMMIT" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("code", "open_issue", "says", "exit_code"),
    [(0, "", "no drift", 0), (3, "", "gh issue create", 0), (3, "7", "the issue is open already", 0), (1, "", "", 1)],
)
def test_drift_in_production_becomes_one_issue(
    tmp_path: Path, code: int, open_issue: str, says: str, exit_code: int
) -> None:
    environment: dict[str, Any] = stand_in(tmp_path, python=f"exit {code}", gh=f"echo {open_issue}")
    environment |= {"SERVER": "http://x", "GITHUB_SERVER_URL": "s", "GITHUB_REPOSITORY": "r", "GITHUB_RUN_ID": "1"}
    done = script("retrain.sh", tmp_path, environment)
    calls = (tmp_path / "calls").read_text()
    assert done.returncode == exit_code
    assert says in done.stdout + calls
    assert ("gh issue create" in calls) == (code == 3 and not open_issue)
    assert calls.startswith("python -m monitoring.report --server http://x --out reports/drift.html")
