"""What the project is made of: locked with hashes, used, allowed, and listed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import leukdetect
from deploy import licences
from tests.conftest import require

LOCKS = sorted(path.with_suffix(".txt") for path in [*Path("requirements").glob("*.in"), *Path("mlflow").glob("*.in")])
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    require(shutil.which(command[0], path=PATH), f"{command[0]} is not installed (requirements/dev.in)")
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": PATH})


def pins(lock: Path) -> list[str]:
    return re.findall(r"^[\w.-]+(?:\[[\w,-]+\])?==\S+", lock.read_text(), re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=str)
def test_every_package_of_a_lock_is_pinned_with_hashes_and_no_index_is_named(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in lock.read_text().splitlines() if line[:1] != "#"))
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in lock.read_text()


@pytest.mark.parametrize(
    ("smaller", "larger"), [("serving", "pipeline"), ("deploy", "pipeline"), ("pipeline", "dev"), ("ray", "dev")]
)
def test_what_is_in_two_locks_has_one_version(smaller: str, larger: str) -> None:
    assert set(pins(Path(f"requirements/{smaller}.txt"))) <= set(pins(Path(f"requirements/{larger}.txt")))


def test_no_dependency_is_unused_and_none_comes_along_unnamed() -> None:
    found = run("deptry", "--no-ansi", "--config", "requirements/deptry.toml", "leukdetect", "serving", "pipeline")
    assert found.returncode == 0, found.stderr


def test_the_server_imports_nothing_but_its_own_dependencies() -> None:
    own = ("--requirements-files", "requirements/serving.in", "--ignore", "DEP002")
    found = run("deptry", "--no-ansi", "--config", "requirements/deptry.toml", *own, "leukdetect", "serving")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("licence", "passes"),
    [
        ("MIT License", True),
        ("Apache Software License; MIT License", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only AND (Apache-2.0 OR MIT)", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("MIT License; Other/Proprietary License", False),
        ("UNKNOWN", False),
    ],
)
def test_the_policy(licence: str, passes: bool) -> None:
    assert licences.allowed(licence) == passes


def test_the_licences_are_allowed_and_the_document_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails after `make lock`, `make licences` writes the document anew."""
    require(shutil.which("pip-licenses", path=PATH), "pip-licenses is not installed (requirements/dev.in)")
    for lock, python in licences.ENVIRONMENTS.items():
        require(python.exists(), f"{python} is missing: `make test` makes it")
        assert licences.ENVIRONMENTS[lock].is_file()
    monkeypatch.setenv("PATH", PATH)
    written = licences.DOCUMENT.read_text()
    monkeypatch.setattr(licences, "DOCUMENT", tmp_path / "licences.md")
    licences.main()
    assert (tmp_path / "licences.md").read_text() == written
    for name in ("onnxruntime", "fastapi"):
        assert f"| {name} | " in written.split("## pipeline.txt")[0]


def test_a_licence_that_is_not_allowed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = [("leftpad", "1.0", "AGPL-3.0-only")]
    monkeypatch.setattr(licences, "installed", lambda lock, python: package)
    monkeypatch.setattr(licences, "DOCUMENT", tmp_path / "licences.md")
    with pytest.raises(SystemExit, match=r"leftpad \(AGPL-3\.0-only\), in requirements/serving\.txt"):
        licences.main()
    assert not licences.DOCUMENT.exists()


def test_what_only_the_pipeline_may_have_the_server_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "installed", lambda lock, python: [("grandalf", "0.8", "GPLv2")])
    with pytest.raises(SystemExit) as refused:
        licences.main()
    assert "grandalf (GPLv2), in requirements/serving.txt" in str(refused.value)
    assert "requirements/pipeline.txt" not in str(refused.value)


@pytest.fixture(scope="module")
def sboms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, made by `make sbom`; cyclonedx-py validates what it writes."""
    require(Path(".venv-sbom/.ready").exists(), "there is no .venv-sbom; `make .venv-sbom/.ready` makes it")
    folder = tmp_path_factory.mktemp("sbom")
    made = run("make", "-o", ".venv-sbom/.ready", "sbom", f"SBOM={folder}")  # as it is: a test installs nothing
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("lock", ["serving", "pipeline", "ray"])
def test_the_sbom_holds_every_package_of_the_lock_with_its_hashes(lock: str, sboms: Path) -> None:
    bom = json.loads((sboms / f"{lock}.json").read_text())
    assert bom["bomFormat"] == "CycloneDX"
    component = bom["metadata"]["component"]
    assert (component["name"], component["version"]) == ("leukdetect", leukdetect.__version__)
    found = {f"{each['name']}=={each['version']}": each for each in bom["components"]}
    assert {re.sub(r"\[.*\]", "", pin) for pin in pins(Path(f"requirements/{lock}.txt"))} <= set(found)
    assert all(reference["hashes"] for each in found.values() for reference in each["externalReferences"])
