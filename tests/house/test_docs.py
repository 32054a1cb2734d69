"""The documents against the code: commands, endpoints, settings, metrics, links and parameters that they name."""

import re
from pathlib import Path

import pytest
import yaml
from fastapi.routing import APIRoute

from serving.app import ROUTERS
from serving.metrics import Metrics
from serving.settings import Settings

DOCUMENTS = [
    *map(Path, ("README.md", "CONTRIBUTING.md", "deploy/README.md", "mlflow/README.md")),
    *sorted(Path("docs").rglob("*.md")),
]
SERVING = Path("docs/serving.md").read_text()
MAKEFILE = Path("Makefile").read_text()


def first_column(heading: str) -> set[str]:
    """What stands in backticks in the first column of the table under a heading of docs/serving.md."""
    section = SERVING.split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def test_every_endpoint_is_documented_and_no_other() -> None:
    routes = {
        f"{method} {route.path}"
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert first_column("Endpoints") == routes


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    names = {
        str(field.validation_alias or f"LEUKDETECT_{name.upper()}"): "–"
        if field.default in (None, [])
        else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert first_column("Settings") == set(names)
    for name, default in names.items():
        assert f"| `{name}` | `{default}` |" in SERVING


def test_every_metric_is_documented_and_no_other() -> None:
    families = [family for family in Metrics().registry.collect() if family.name.startswith("leukdetect_")]
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert first_column("Metrics") == names


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_make_targets_and_presets_in_documents_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for command in re.findall(r"(?:^|`)make ([^`\n#]*)", path.read_text(), re.MULTILINE):
        words = command.split()
        assert words[0].rstrip(".,") in targets | {"PYTHON=/path/to/python3.11"}, command
        for preset in re.findall(r"PRESET=(\w+)", command):
            assert Path(f"presets/{preset}.yaml").is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_and_files_in_documents_exist(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_parameters_in_commands_exist(path: Path) -> None:
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    for name in re.findall(r"-S ([\w.]+)=", path.read_text()):
        value = recipe
        for part in name.split("."):
            value = value[part]


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_source_files_in_documents_exist(path: Path) -> None:
    folders = "leukdetect|pipeline|serving|tests|presets|requirements"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", path.read_text()):
        assert Path(name).is_file(), name
