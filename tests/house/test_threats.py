"""The threat model against the tests: each promise names at least one, and each of these exists."""

import ast
import re
from pathlib import Path

import pytest

PROMISES = [
    line.split(" | ")
    for line in Path("docs/threat-model.md").read_text().split("## Promises")[1].split("\n## ")[0].splitlines()[4:]
    if line
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise[0].strip("| "))
def test_each_promise_names_tests_that_exist(promise: list[str]) -> None:
    _, _, shown = promise
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
    assert named
    assert shown.count("::") == len(named)
    for file, name in named:
        functions = {each.name for each in ast.parse(Path(file).read_text()).body if isinstance(each, ast.FunctionDef)}
        assert name in functions, f"{file} has no {name}"


def test_the_policy_says_how_to_report_and_what_is_supported() -> None:
    policy = Path("SECURITY.md").read_text()
    assert {"## Supported versions", "## Report a weakness"} <= set(policy.splitlines())
    assert "@" not in policy
