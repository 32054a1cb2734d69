"""What CONTRIBUTING.md says of a team's day, on this project's stages and dependencies, with commands that only write.

Clones of a bare repository share a DVC remote. tests/delivery/test_chain.py has the gate and deployments.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.delivery.contributing import commands
from tests.project import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# Each output depends on the stage's parameters and on what it reads, and on nothing else.
WRITE = """
import functools, hashlib, json, pathlib, sys, yaml
stage = yaml.safe_load(open("dvc.yaml"))["stages"][sys.argv[1]]
recipe = yaml.safe_load(open("params.yaml"))
digest = hashlib.sha256(sys.argv[1].encode())
for name in stage["params"]:
    digest.update(repr(functools.reduce(lambda part, key: part[key], name.split("."), recipe)).encode())
for dep in stage["deps"]:
    if dep.startswith(("data/", "models/", "reports/")):
        for path in sorted(pathlib.Path(dep).rglob("*")) or [pathlib.Path(dep)]:
            digest.update(path.read_bytes())
for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
    path = pathlib.Path(out if isinstance(out, str) else next(iter(out)))
    path = path if path.suffix else path / "file"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"fp32": {"balanced_accuracy": int(digest.hexdigest()[:4], 16) / 65536}}))
if sys.argv[1] == "features":  # as the stage: what DVC does not keep
    pathlib.Path("data/features").mkdir(exist_ok=True)
"""


class Clone:
    """A colleague's clone; its commands run as in a shell."""

    def __init__(self, origin: Path, folder: Path) -> None:
        self.folder = folder
        who = {f"GIT_{role}_{what}": folder.name for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | who | {"DVC_NO_ANALYTICS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
        subprocess.run(["git", "clone", "-q", str(origin), str(folder)], check=True, capture_output=True)

    def __call__(self, command: str, expect: int = 0) -> str:
        done = subprocess.run(command.split(), cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == expect, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ran(self, command: str) -> list[str]:
        return re.findall(r"Running stage '(\w+)'", self(command))

    def change(self, **sections: dict[str, object]) -> None:
        """In place, as by hand, so that git can merge two people's."""
        file = self.folder / "params.yaml"
        text = file.read_text()
        for section, values in sections.items():
            for key, value in values.items():
                text, found = re.subn(rf"(^{section}:.*?\n  {key}: )\S+", rf"\g<1>{value}", text, flags=re.M | re.S)
                assert found == 1
        file.write_text(text)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare repository, with a model on main, and its data in a remote."""
    root = tmp_path_factory.mktemp("team")
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(root / "origin.git")], check=True)
    anna = Clone(root / "origin.git", root / "anna")
    anna("git checkout -q -b main")
    for name in (
        "params.yaml",
        "gate.yaml",
        ".gitignore",
        ".dvcignore",
        ".dvc/config",
        "reports/cross_validation.json",
    ):
        (anna.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, anna.folder / name)
    for name in ("pipeline", "leukdetect"):
        shutil.copytree(ROOT / name, anna.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = re.sub(r"python -m pipeline\.(?!outside)(\w+)", r"python write.py \1", (ROOT / "dvc.yaml").read_text())
    (anna.folder / "dvc.yaml").write_text(text)
    (anna.folder / "write.py").write_text(WRITE)
    anna(f"dvc remote add -q --default store {root}/store")
    stages = yaml.safe_load(text)["stages"]
    assert anna.ran("dvc repro") == [name for name in stages if "matrix" not in stages[name]]  # the demo has no folds
    anna("git add -A")
    anna("git commit -q -m first")
    anna("git push -q -u origin main")
    anna("dvc push -q")
    return root / "origin.git"


@pytest.fixture
def ben(origin: Path, tmp_path: Path) -> Clone:
    clone = Clone(origin, tmp_path / "ben")
    clone("dvc pull -q")
    return clone


def test_after_clone_and_pull_repro_runs_nothing_but_the_two_looks(ben: Clone) -> None:
    lock = ben.read("dvc.lock")
    assert not (ben.folder / "data/features").exists()  # the one thing that nobody pulls
    assert ben.ran("dvc repro") == ["outside", "register"]
    assert ben.read("dvc.lock") == lock
    assert not ben("git status --porcelain")
    assert json.loads(ben("dvc status --json")) == {name: ["always changed"] for name in ("outside", "register")}


def test_what_changes_nothing_before_the_phases_retrains_only_them(ben: Clone) -> None:
    ben.change(fine_tune={"learning_rate": "2.0e-4"})
    assert ben.ran("dvc repro") == ["outside", "fine_tune", "calibrate", "export", "evaluate", "register"]


def test_two_branches_that_changed_different_things_are_merged(ben: Clone, origin: Path, tmp_path: Path) -> None:
    """As CONTRIBUTING.md has it: their own lock, and a repro that runs what neither branch has run."""
    ben("git checkout -q -b tune")
    ben.change(fine_tune={"learning_rate": "2.0e-4"})
    ben("dvc repro evaluate")
    ben("git commit -q -a -m tune")
    ben("dvc push -q")
    ben("git push -q origin tune")
    cy = Clone(origin, tmp_path / "cy")
    cy("dvc pull -q")
    cy("git checkout -q -b prevalence")
    cy.change(evaluate={"prevalence": "0.20"})
    assert cy.ran("dvc repro evaluate") == ["outside", "evaluate"]
    cy("git commit -q -a -m prevalence")

    fetch, merge, theirs, pull, repro, add, commit = commands("Two branches that both trained")
    cy(fetch)
    conflict = cy(merge, expect=1)
    assert {"dvc.lock", "reports/headline.json"} == set(re.findall(r"Merge conflict in (\S+)", conflict))
    cy(theirs)
    cy(pull)
    assert cy.ran(repro) == ["outside", "evaluate"]  # and trains nothing
    cy(add)
    cy(commit)
    assert cy("git diff --name-only --diff-filter=U") == ""
    changed = cy("dvc metrics diff origin/tune")
    assert "reports/headline.json  fp32.balanced_accuracy" in changed
    assert cy.ran("dvc repro") == ["outside", "register"]
    assert {"learning_rate: 2.0e-4", "prevalence: 0.20"} <= {
        line.split("  #")[0].strip() for line in cy.read("params.yaml").splitlines()
    }


def test_dvc_checkout_brings_back_what_was_there_before_a_run_that_is_not_wanted(ben: Clone) -> None:
    before = ben.read("models/leukdetect.onnx"), ben.read("reports/headline.json")
    ben.change(fine_tune={"learning_rate": "9.0e-4"})
    ben("dvc repro evaluate")
    assert ben.read("models/leukdetect.onnx") != before[0]
    for command in commands("A run that is not wanted, or was refused"):
        ben(command)
    assert (ben.read("models/leukdetect.onnx"), ben.read("reports/headline.json")) == before
    assert ben.ran("dvc repro") == ["outside", "register"]


@pytest.mark.parametrize("way", ["add", "import-url"])
def test_images_that_dvc_holds_are_brought_changed_and_had_by_a_colleague(
    ben: Clone, origin: Path, tmp_path: Path, way: str
) -> None:
    adding, importing, updating, pushing = commands("Bring data")
    importing = importing.replace("/mnt/share", f"{tmp_path}/share")
    theirs = tmp_path / "share/smears" if way == "import-url" else ben.folder / "smears"
    for number, name in enumerate(("benign", "early", "pre", "pro")):
        (theirs / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(theirs / name / "a.png")
    ben(importing if way == "import-url" else adding)
    text = ben.read("params.yaml").replace("source: demo ", "source: folder ").replace("folder: null", "folder: smears")
    for key in ("origin", "licence"):
        text = text.replace(f"{key}: null", f"{key}: ours")
    for key in ("thumbnails", "synthetic"):
        text = text.replace(f"{key}: null", f"{key}: false")
    (ben.folder / "params.yaml").write_text(text)
    ran = ben.ran("dvc repro evaluate")
    assert ran[:2] == ["outside", "fetch"]
    ben("git add -A")
    ben(f"git commit -q -m {way}")
    Image.new("RGB", (32, 32), (99, 0, 0)).save(theirs / "pro/b.png")
    ben(updating if way == "import-url" else adding)
    assert ben.ran("dvc repro evaluate")[:2] == ["outside", "fetch"]
    assert "smears.dvc" in ben("git status --porcelain")
    ben(f"git commit -q -a -m {way}")
    ben(pushing)
    ben(f"git push -q origin HEAD:{way}")

    cy = Clone(origin, tmp_path / "cy")
    cy(f"git checkout -q {way}")
    cy("dvc pull -q")
    assert (cy.folder / "smears/pro/b.png").is_file()
    assert cy.ran("dvc repro evaluate") == ["outside"]
