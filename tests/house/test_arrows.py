"""Who may import whom, how long a file may be, and that no import goes in a circle. docs/architecture.md draws it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

from tests.project import ROOT

# What each package may import of this project, beside itself.
ARROWS: dict[str, set[str]] = {
    "leukdetect": set(),
    "pipeline": {"leukdetect"},
    "serving": {"leukdetect"},
    "monitoring": {"leukdetect"},
}
OURS = {*ARROWS, "benchmarks", "deploy", "tests"}
# What the server's image does not hold, and what only a server needs.
NOT_IN_THE_IMAGE = {"tensorflow", "keras", "pandas", "sklearn", "matplotlib"}
FOREIGN = {
    "leukdetect": NOT_IN_THE_IMAGE | {"fastapi", "starlette", "uvicorn", "prometheus_client", "dvc"},
    "serving": NOT_IN_THE_IMAGE,
}
LATE = {"leukdetect": {"mlflow", "jinja2"}}  # only inside functions: the library works without them
MOST_LINES, MOST_STAGE_LINES = 300, 120
STAGES = {f"pipeline.{name}" for name in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]}


@dataclass(frozen=True)
class Import:
    """One import, wherever in a file it stands: in a function, or behind TYPE_CHECKING."""

    importer: str
    imported: str
    at_the_top: bool


def modules(root: Path) -> dict[str, Path]:
    """Every module of the packages in ARROWS, by its dotted name."""
    found = {}
    for package in ARROWS:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> Iterator[Import]:
    known = modules(root)
    for importer, path in known.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import hides where it points"
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [each if each in known else str(node.module) for each in whole]
            else:
                continue
            for name in names:
                yield Import(importer, name, node in tree.body)


def faults(root: Path) -> list[str]:
    """What breaks the house's rules in a tree, a sentence each."""
    found = []
    graph: dict[str, set[str]] = {}
    for each in imports(root):
        ours, theirs = each.importer.split(".")[0], each.imported.split(".")[0]
        if theirs in OURS and theirs != ours and theirs not in ARROWS[ours]:
            found.append(f"{each.importer} imports {each.imported}: {ours} may not know {theirs}")
        if theirs in FOREIGN.get(ours, ()):
            found.append(f"{each.importer} imports {each.imported}, which its users need not have")
        if theirs in LATE.get(ours, ()) and each.at_the_top:
            found.append(f"{each.importer} imports {each.imported} at its top")
        if each.imported in STAGES:
            found.append(f"{each.importer} imports the stage {each.imported}; what it wants belongs into a room")
        if theirs in ARROWS and each.imported != each.importer:
            graph.setdefault(each.importer, set()).add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"imports go in a circle: {' → '.join(reversed(error.args[1]))}")
    for name, path in modules(root).items():
        lines, most = len(path.read_text().splitlines()), MOST_STAGE_LINES if name in STAGES else MOST_LINES
        if lines > most:
            found.append(f"{name} has {lines} lines; {most} are the most")
    return found


def test_the_house_keeps_its_rules() -> None:
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("serving/api/x.py", "from pipeline.data import splits", "serving may not know pipeline"),
        ("pipeline/data/x.py", "def f():\n    from serving.app import create_app", "pipeline may not know serving"),
        ("leukdetect/x.py", "import monitoring.report", "leukdetect may not know monitoring"),
        ("monitoring/x.py", "from tests import project", "monitoring may not know tests"),
        ("serving/x.py", "import pandas as pd", "serving.x imports pandas"),
        ("leukdetect/x.py", "import fastapi", "leukdetect.x imports fastapi"),
        ("leukdetect/x.py", "import mlflow", "leukdetect.x imports mlflow at its top"),
        ("pipeline/network/x.py", "from pipeline import export", "imports the stage pipeline.export"),
        ("pipeline/validate.py", "from pipeline.fetch import main", "imports the stage pipeline.fetch"),
        ("pipeline/calibrate.py", "\n" * 130, "pipeline.calibrate has 130 lines; 120 are the most"),
        ("serving/logs.py", "x = 1\n" * 301, "serving.logs has 301 lines; 300 are the most"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named(tmp_path: Path, file: str, text: str, fault: str) -> None:
    for name in ("pipeline/data/splits.py", "pipeline/export.py", "pipeline/fetch.py", "serving/app.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).write_text(text)
    [found] = faults(tmp_path)
    assert fault in found


def test_a_circle_is_named_even_behind_type_checking(tmp_path: Path) -> None:
    (tmp_path / "serving/api").mkdir(parents=True)
    (tmp_path / "serving/metrics.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from serving.api.answers import Answer"
    )
    (tmp_path / "serving/api/answers.py").write_text("from serving import metrics")
    [found] = faults(tmp_path)
    assert found.startswith("imports go in a circle: serving.")


@pytest.mark.parametrize("package", ["pipeline", "serving"])
def test_tests_mirror_the_house(package: str) -> None:
    rooms = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").is_file()}
    mirrored = {path.name for path in (ROOT / "tests" / package).iterdir() if path.is_dir() and path.name[0] != "_"}
    assert mirrored <= rooms, f"tests/{package} has rooms that {package} has not: {mirrored - rooms}"


IMPORT_EVERYTHING = """
import importlib, sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden}:
            raise SystemExit(f"{package} imports {{name}}")

sys.meta_path.insert(0, Guard())
for name in {names}:
    importlib.import_module(name)
"""


def _python(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("package", ["leukdetect", "serving"])
def test_what_a_package_does_without_does_not_come_along_by_another_package_either(package: str) -> None:
    names = [name for name in modules(ROOT) if name.split(".")[0] == package and not name.endswith("__main__")]
    _python(IMPORT_EVERYTHING.format(package=package, names=names, forbidden=FOREIGN[package] | {"pipeline"}))


def test_text_loads_no_matplotlib() -> None:
    names = ["pipeline.registry.gate", "pipeline.reporting.model_card", "pipeline.reporting.pull_request"]
    _python(IMPORT_EVERYTHING.format(package="text", names=names, forbidden={"matplotlib", "tensorflow"}))


def test_mlflow_is_the_library_and_not_the_folder_of_that_name() -> None:
    assert not list((ROOT / "mlflow").glob("**/*.py"))
    assert "site-packages" in _python("import mlflow; print(mlflow.__file__)")
