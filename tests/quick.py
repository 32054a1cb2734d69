"""`pytest --quick`: which test files need no TensorFlow, registry, process, browser or cluster, by what they import."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("benchmarks", "deploy", "leukdetect", "monitoring", "pipeline", "serving", "tests")
# At a file's top: what is imported inside a function is not needed by all.
SLOW_TO_IMPORT = {"great_expectations", "keras", "mlflow", "ray", "selenium", "sklearn", "tensorflow", "tf2onnx"}
STARTS_SOMETHING = {
    "Project",
    "Server",
    "apart",
    "running_server",
    "subprocess",
    "uvicorn",
}  # in a test or its helpers
ALWAYS = ROOT / "tests/house"  # its few processes are short, and its rules are what an edit breaks first


def is_quick(path: Path) -> bool:
    """Whether a test file needs none of it."""
    if path.is_relative_to(ALWAYS):
        return True
    needs = _needs(path)
    started = set().union(*(_imported(each) for each in needs if each.is_relative_to(ROOT / "tests")))
    third_party = {name.split(".")[0] for each in needs for name in _imported(each)}
    return not (third_party & SLOW_TO_IMPORT or {name.split(".")[-1] for name in started} & STARTS_SOMETHING)


def _needs(path: Path) -> set[Path]:
    """The file itself and every file of ours that it imports, directly or not."""
    found: set[Path] = set()
    left = {path}
    while left:
        found |= left
        left = {file for each in left for file in _files(_imported(each))} - found
    return found


@cache
def _imported(path: Path) -> frozenset[str]:
    """Dotted names of the modules, and of what is taken from them, that a file imports at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _files(names: Iterable[str]) -> set[Path]:
    ours = (ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names if name.split(".")[0] in OURS)
    return {path for path in ours if path.is_file()}
