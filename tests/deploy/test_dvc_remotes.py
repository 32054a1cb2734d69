"""`dvc push` and `dvc pull` with a folder and with an S3 store, as deploy/README.md tells."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import object_store
from tests.project import ROOT

README = (ROOT / "deploy/README.md").read_text()
BIN = Path(sys.executable).parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with this one's DVC settings and a folder of data."""
    folder = tmp_path / "project"
    (folder / "data/raw").mkdir(parents=True)
    for number in range(3):
        (folder / f"data/raw/{number}.jpg").write_bytes(os.urandom(1000))
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    run(folder, "dvc", "add", "-q", "data/raw")
    return folder


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[str]:
    """The address of a store with the bucket of deploy/README.md."""
    with object_store.running(tmp_path / "s3.log", bucket="leukdetect-dvc") as address:
        yield address


def run(folder: Path, *command: str) -> None:
    environment = os.environ | object_store.KEYS | {"DVC_NO_ANALYTICS": "1"}
    program = str(BIN / command[0]) if command[0] == "dvc" else command[0]
    result = subprocess.run([program, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def commands(kind: str, **places: str) -> list[list[str]]:
    """The lines that add a remote of this kind in deploy/README.md, with the test's places in them."""
    section = README.split(f"### {kind}\n")[1].split("```")[1]
    lines = re.findall(r"^dvc remote .*?(?=\s+#|$)", section, re.MULTILINE)
    assert lines
    for documented, place in places.items():
        assert documented in section
        lines = [line.replace(documented, place) for line in lines]
    return [line.split() for line in lines]


def push_lose_and_pull(project: Path) -> None:
    before = {path.name: path.read_bytes() for path in (project / "data/raw").iterdir()}
    run(project, "dvc", "push", "-q")
    shutil.rmtree(project / "data/raw")
    shutil.rmtree(project / ".dvc/cache")
    run(project, "dvc", "pull", "-q")
    assert {path.name: path.read_bytes() for path in (project / "data/raw").iterdir()} == before


def test_a_folder_keeps_the_data(project: Path, tmp_path: Path) -> None:
    for command in commands("A folder", **{"/mnt/share/leukdetect-dvc": str(tmp_path / "share")}):
        run(project, *command)
    push_lose_and_pull(project)


def test_an_s3_store_keeps_the_data(project: Path, s3: str) -> None:
    for command in commands("An S3 store", **{"https://s3.example": s3}):
        run(project, *command)
    push_lose_and_pull(project)


def test_what_is_machine_specific_stays_out_of_git(project: Path) -> None:
    s3 = "http://127.0.0.1:9"  # it is only noted down
    for command in commands("An S3 store", **{"https://s3.example": s3}):
        run(project, *command)
    assert s3 not in (project / ".dvc/config").read_text()
    assert "s3://leukdetect-dvc" in (project / ".dvc/config").read_text()
    assert s3 in (project / ".dvc/config.local").read_text()
