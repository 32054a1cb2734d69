"""dvc.yaml against the code: DVC runs a stage again only for what is named there."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

DVC = yaml.safe_load(Path("dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = DVC["stages"]
OURS = ("leukdetect", "pipeline", "serving")
# What a stage uses without an import: `register` logs a file, `fold` runs other stages on a part of the images.
MORE = {
    "register": {"pipeline/registry/pyfunc.py"},
    "fold": {"pipeline/features.py", "pipeline/train_head.py", "pipeline/fine_tune.py"},
}
CODE = (".py", ".jinja")
IN_GIT = {"reports/cross_validation.json"}  # no stage's: `python -m pipeline.cross_validate` trains many times


def modules(path: Path) -> set[str]:
    """The files of ours that a file imports, wherever in it the import stands, and the templates that it names."""
    if path.suffix != ".py":
        return set()
    named = (path.with_name(name) for name in re.findall(r'"([\w.]+\.jinja)"', path.read_text()))
    found = {template.as_posix() for template in named if template.is_file()}
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = Path(*name.split(".")).with_suffix(".py")
            if name.split(".")[0] in OURS and file.is_file():
                found.add(file.as_posix())
    return found


def name(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(next(iter(entry)))


def names(entries: list[Any]) -> set[str]:
    return set(map(name, entries))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_file_of_that_name(stage: str) -> None:
    each = " ${item.fold} ${item.seed}" if "matrix" in STAGES[stage] else ""
    assert STAGES[stage]["cmd"] == f"python -m pipeline.{stage}{each}"
    assert Path(f"pipeline/{stage}.py").is_file()


def imported(stage: str) -> set[str]:
    """The stage's own file, and what it and its helpers import."""
    needed: set[str] = set()
    found = {f"pipeline/{stage}.py"} | MORE.get(stage, set())
    while new := found - needed:
        needed |= new
        found = {module for file in new for module in modules(Path(file))}
    return needed


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_what_the_stage_imports_and_what_its_helpers_import(stage: str) -> None:
    deps = [dep for dep in map(name, STAGES[stage]["deps"]) if dep.endswith(CODE)]
    needed = imported(stage)
    assert set(deps) == needed, f"missing in dvc.yaml: {needed - set(deps)}; not imported: {set(deps) - needed}"
    assert deps == sorted(deps)


@pytest.mark.parametrize("path", sorted(Path("pipeline").rglob("*.py")), ids=str)
def test_no_stage_is_imported_by_another_nor_by_a_room(path: Path) -> None:
    stages = {f"pipeline/{stage}.py" for stage in STAGES}
    assert not modules(path) & stages


@pytest.mark.parametrize("stage", STAGES)
def test_every_data_dependency_is_some_stages_output(stage: str) -> None:
    outputs = {out for s in STAGES.values() for key in ("outs", "metrics", "plots") for out in names(s.get(key, []))}
    data = {dep for dep in names(STAGES[stage]["deps"]) if not dep.endswith(CODE)}
    assert data <= outputs | IN_GIT | {str(Path(out).parent) for out in outputs if "$" in out}


def test_params_named_in_dvc_yaml_are_sections_or_keys_that_exist() -> None:
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    for stage in STAGES.values():
        for name in stage["params"]:
            value = recipe
            for part in name.split("."):
                value = value[part]


def test_every_section_of_params_is_some_stages_parameter() -> None:
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    assert set(recipe) == {name.split(".")[0] for stage in STAGES.values() for name in stage["params"]}


def attributes(file: Path) -> set[str]:
    """Every `recipe.<section>` that a file reads (validate_ and register_ are sections whose names were taken)."""
    return {
        node.attr.rstrip("_")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "recipe"
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_every_section_it_reads(stage: str) -> None:
    sections = set(yaml.safe_load(Path("params.yaml").read_text()))
    declared = {name.split(".")[0] for name in STAGES[stage]["params"]}
    read = attributes(Path(f"pipeline/{stage}.py")) & sections
    assert read <= declared | {"prepare"}, f"not declared: {read - declared}"
