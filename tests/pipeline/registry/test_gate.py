"""The gate: every bound refuses on its own, and nothing that is unknown passes."""

import math

import pytest

from pipeline.evaluation.metrics import Estimate
from pipeline.params import Gate
from pipeline.registry import gate
from pipeline.stage import Problem
from tests import measured

KEYS = ("benign", "pro")
BOUNDS = Gate(
    mode="enforce",
    min_balanced_accuracy=0.60,
    min_class_recall=0.40,
    min_malignant_sensitivity=0.85,
    max_ece=0.15,
    min_margin_over_colour=0.20,
    max_cells_masked=0.40,
    max_int8_drop=0.03,
    max_regression=0.02,
)
# Each check, with the number that it reads, exactly at its bound, and the side that fails.
CHECKS = {
    "balanced accuracy": ("fp32.balanced_accuracy", 0.60, -0.001),
    "recall of benign": ("fp32.per_class.benign.recall", 0.40, -0.001),
    "recall of pro": ("fp32.per_class.pro.recall", 0.40, -0.001),
    "malignant sensitivity": ("fp32.malignant_sensitivity", 0.85, -0.001),
    "ECE": ("fp32.ece", 0.15, 0.001),
    "margin over colour": ("margin_over_colour", 0.20, -0.001),
    "cells painted over": ("audit.cells_masked.balanced_accuracy", 0.40, 0.001),
    "INT8 drop": ("int8_vs_fp32.balanced_accuracy_drop", 0.03, 0.001),
}
AT_BOUNDS = {path: bound for path, bound, _ in CHECKS.values()}


def failed(values: dict[str, float], regression: Estimate | None = None) -> list[str]:
    verdict = gate.verdict(measured.report(values), BOUNDS, regression, KEYS)
    return [check.name for check in verdict if not check.passed]


def test_a_model_exactly_at_every_bound_passes() -> None:
    assert failed(AT_BOUNDS, Estimate(0.0, -0.01, 0.01)) == []


@pytest.mark.parametrize("name", CHECKS)
def test_a_hair_beyond_one_bound_fails_that_check_alone(name: str) -> None:
    path, bound, change = CHECKS[name]
    assert failed(AT_BOUNDS | {path: bound + change}) == [name]


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_what_is_not_a_number_never_reaches_the_gate(unknown: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        Estimate(unknown, unknown, unknown)


def test_without_a_champion_there_is_no_comparison() -> None:
    assert len(gate.verdict(measured.report(), BOUNDS, None, KEYS)) == len(CHECKS)


@pytest.mark.parametrize(
    ("difference", "passes"),
    [
        (Estimate(0.05, 0.01, 0.09), True),
        (Estimate(-0.01, -0.03, 0.01), True),  # could be chance, and small
        (Estimate(-0.02, -0.05, 0.01), True),  # exactly what is allowed
        (Estimate(-0.021, -0.05, 0.01), False),  # larger than allowed, though it could be chance
        (Estimate(-0.01, -0.015, -0.005), False),  # smaller than allowed, but surely a drop
    ],
)
def test_a_regression_is_a_large_drop_or_a_sure_one(difference: Estimate, passes: bool) -> None:
    assert failed(AT_BOUNDS, difference) == ([] if passes else ["balanced accuracy, new − champion"])


def test_a_class_that_was_not_measured_is_named() -> None:
    with pytest.raises(Problem, match="no recall of other; `dvc repro"):
        gate.verdict(measured.report(), BOUNDS, None, (*KEYS, "other"))


def test_the_table_marks_what_fell_short_and_nothing_else() -> None:
    checks = gate.verdict(measured.report(AT_BOUNDS | {"fp32.ece": 0.2}), BOUNDS, Estimate(-0.3, -0.4, -0.2), KEYS)
    lines = gate.table(checks).splitlines()
    assert len(lines) == len(checks) == 9
    assert [line.split("  ")[1] for line in lines if "FAILS" in line] == ["ECE", "balanced accuracy, new − champion"]
    assert "0.2000  FAILS  ≤ 0.1500" in gate.table(checks)
    assert "(-0.4000 to -0.2000)" in gate.table(checks)
