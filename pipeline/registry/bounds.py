"""gate.yaml: what a model must reach before it may serve; and whose gate.yaml judges this tree.

A change is judged by the gate.yaml of the main branch, not by its own: what it changes there is shown, and holds once
it was merged. Only a model of the main branch's very commit, with nothing changed since, may become champion.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from pipeline import params
from pipeline.registry import git
from pipeline.sections import Section, Share
from pipeline.stage import Problem

GATE_FILE = Path("gate.yaml")


Mode = Annotated[
    Literal["off", "dry-run", "enforce"],
    BeforeValidator(lambda given: "off" if given is False else given),  # as YAML reads a plain off
]


class Bound(Section):
    """A bound, and what must keep it: the measured value, or the worse end of its 95 % interval."""

    bound: Annotated[float, Field(ge=-1, le=1)]
    of: Literal["value", "interval"] = "value"

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_of_the_value(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else {"bound": given}


class FileBounds(Section):
    """Bounds of one model file."""

    min_balanced_accuracy: Bound
    min_class_recall: Bound
    min_malignant_sensitivity: Bound
    max_ece: Bound
    max_referred: Bound
    min_unlikeness_auroc: Bound


class Gate(Section):
    """gate.yaml; the file itself says what each key is for."""

    mode: Mode
    reason: Annotated[str, Field(min_length=1)] | None
    fp32: FileBounds
    int8: FileBounds
    min_margin_over_colour: Bound
    max_cells_masked: Bound
    max_int8_drop: Bound
    max_regression: Share
    # Newer than the rest: a main branch from before has a gate.yaml without them.
    max_corner_drop: Bound = Bound(bound=1)
    min_test_groups: Annotated[int, Field(ge=1)] = 1
    limits_at_ends: Literal["warn", "refuse"] = "warn"

    @model_validator(mode="after")
    def _off_has_a_reason(self) -> Self:
        if self.mode == "off" and not self.reason:
            raise ValueError("mode: off needs a reason, which goes into the version's tags and the promotions log")
        return self


class Judge(NamedTuple):
    """Whose bounds hold here."""

    gate: Gate
    keeps: str  # why no alias of the gate's may move to this tree's model; empty if it may
    changes: list[str]  # lines of a diff: what this tree changes in the gate.yaml that judges it


def read(text: str, name: str = str(GATE_FILE)) -> Gate:
    """Raises Problem if it is no YAML, or a key is unknown, missing or out of range."""
    try:
        return params.checked(Gate, yaml.safe_load(text), name)
    except yaml.YAMLError as error:
        raise Problem(f"{name} is not valid YAML: {error}") from error


def load() -> Gate:
    """This tree's gate.yaml, whoever it judges. Raises Problem if it is missing, or as for `read`."""
    return read(_own())


def judge(base: str | None = None) -> Judge:
    """Finds the gate.yaml that judges this tree.

    Args:
        base: the revision whose gate.yaml holds; the main branch unless given.

    Raises:
        Problem: the given base has no gate.yaml, git refuses to answer, or as for `read`.
    """
    try:
        if not git.is_repository() and base is None:
            return Judge(load(), "", [])  # nothing is committed here, and no other branch could be meant
    except git.GitError as error:
        raise Problem(f"git does not say which commit this is, so nothing is judged: {error}") from error
    chosen = base or git.main_branch()
    try:
        judging = git.ask("show", f"{chosen}:./{GATE_FILE}") if chosen else None
    except git.GitError as error:
        if base:
            raise Problem(f"{base} has no {GATE_FILE} to judge by: {error}") from error
        judging = None
    if judging is None:
        return Judge(load(), f"there is no main branch with a {GATE_FILE} to judge by", [])
    own = _own().rstrip("\n")
    changes = difflib.unified_diff(judging.splitlines(), own.splitlines(), f"{chosen}", "here", n=0, lineterm="")
    return Judge(read(judging, f"{chosen}:{GATE_FILE}"), _keeps(), list(changes))


def _keeps() -> str:
    main, commit = git.main_branch(), git.git_commit()
    if os.environ.get("DVC_EXP_NAME"):
        return f"it is the experiment {os.environ['DVC_EXP_NAME']}"
    if commit.endswith(git.DIRTY):
        return "there are changes that are not committed"
    if main is None or commit != git.resolve(main):
        return f"this commit is not the newest of {main or 'a main branch'}"
    return ""


def _own() -> str:
    try:
        return GATE_FILE.read_text()
    except FileNotFoundError as error:
        raise Problem(
            f"{GATE_FILE} is missing. Run from the project's root, or copy one of presets/gates/ there."
        ) from error
