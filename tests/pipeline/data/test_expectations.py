"""Great Expectations: through its public interface, but for what is named here."""

import ast
import importlib
import importlib.metadata

import pandas as pd
import pytest

from pipeline import params
from pipeline.data import expectations
from tests.project import ROOT

PUBLIC = {"great_expectations", "great_expectations.expectations"}
INTERNAL = {  # of no public interface: an upgrade may move them
    "great_expectations.render.renderer.content_block": "ValidationResultsTableContentBlockRenderer",
    "great_expectations.render.view": "DefaultJinjaComponentView",
}


def test_of_the_librarys_internals_only_the_renderers_are_imported() -> None:
    found: dict[str, str] = {}
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {each.name: "" for each in node.names if each.name.startswith("great_expectations")}
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("great_expectations"):
                found[str(node.module)] = node.names[0].name
    assert {module: name for module, name in found.items() if module not in PUBLIC} == INTERNAL


@pytest.mark.parametrize(("module", "name"), INTERNAL.items())
def test_the_internals_are_where_they_were(module: str, name: str) -> None:
    version = importlib.metadata.version("great_expectations")
    try:
        there = hasattr(importlib.import_module(module), name)
    except ImportError:
        there = False
    assert there, (
        f"Great Expectations {version} has no {module}.{name}, that pipeline/data/expectations.py uses. "
        "Correct that import and this test, or stay on the version before (requirements/pipeline.in)."
    )


def test_a_table_is_judged_by_every_check_in_order_whatever_else_fails() -> None:
    checks = expectations.class_checks(params.load(ROOT / "params.yaml"))
    table = pd.DataFrame({"class": ["benign", "pro"], "images": [3, 300], "imbalance": [100.0, 1.0]})
    found = expectations.judge("classes", table, "class", checks)
    assert [each.check for each in found] == checks
    assert [each.success for each in found] == [False, False]
    assert [each.unexpected for each in found] == [
        [{"item": "benign", "value": 3}],
        [{"item": "benign", "value": 100.0}],
    ]
    assert all("benign" in each.html for each in found)


def test_a_check_that_cannot_be_computed_is_no_failure_of_the_data() -> None:
    checks = expectations.class_checks(params.load(ROOT / "params.yaml"))
    table = pd.DataFrame({"class": ["benign"], "images": ["many"], "imbalance": [1.0]})
    with pytest.raises(RuntimeError, match="usable images a class"):
        expectations.judge("classes", table, "class", checks)
