"""The gate: every bound refuses on its own, and nothing that is unknown passes."""

import copy
import math
from typing import Any

import pytest

from pipeline.evaluation.metrics import Estimate
from pipeline.params import Gate
from pipeline.registry import gate
from pipeline.stage import Problem

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
# Exactly at every bound.
METRICS: dict[str, Any] = {
    "fp32": {
        "balanced_accuracy": {"value": 0.60, "low": 0.5, "high": 0.7},
        "per_class": {"benign": {"recall": {"value": 0.40}}, "pro": {"recall": {"value": 0.40}}},
        "malignant_sensitivity": {"value": 0.85},
        "ece": {"value": 0.15},
    },
    "margin_over_colour": {"value": 0.20},
    "audit": {"cells_masked": {"balanced_accuracy": {"value": 0.40}}},
    "int8_vs_fp32": {"balanced_accuracy_drop": {"value": 0.03}},
}
WORSE = {
    "balanced accuracy": ("fp32.balanced_accuracy.value", -0.001),
    "recall of benign": ("fp32.per_class.benign.recall.value", -0.001),
    "recall of pro": ("fp32.per_class.pro.recall.value", -0.001),
    "malignant sensitivity": ("fp32.malignant_sensitivity.value", -0.001),
    "ECE": ("fp32.ece.value", 0.001),
    "margin over colour": ("margin_over_colour.value", -0.001),
    "cells painted over": ("audit.cells_masked.balanced_accuracy.value", 0.001),
    "INT8 drop": ("int8_vs_fp32.balanced_accuracy_drop.value", 0.001),
}


def with_value(field: str, value: float | None) -> dict[str, Any]:
    metrics = copy.deepcopy(METRICS)
    *path, last = field.split(".")
    part = metrics
    for key in path:
        part = part[key]
    part[last] = value
    return metrics


def failed(metrics: dict[str, Any], regression: Estimate | None = None) -> list[str]:
    return [check.name for check in gate.verdict(metrics, BOUNDS, regression, KEYS) if not check.passed]


def test_a_model_exactly_at_every_bound_passes() -> None:
    assert failed(METRICS, Estimate(0.0, -0.01, 0.01)) == []


@pytest.mark.parametrize("name", WORSE)
def test_a_hair_beyond_one_bound_fails_that_check_alone(name: str) -> None:
    field, change = WORSE[name]
    assert failed(with_value(field, gate.number(METRICS, field) + change)) == [name]


@pytest.mark.parametrize("unknown", [math.nan, None])
@pytest.mark.parametrize("name", WORSE)
def test_what_is_not_a_number_never_passes(name: str, unknown: float | None) -> None:
    assert failed(with_value(WORSE[name][0], unknown)) == [name]


def test_without_a_champion_there_is_no_comparison() -> None:
    assert len(gate.verdict(METRICS, BOUNDS, None, KEYS)) == len(WORSE)


@pytest.mark.parametrize(
    ("difference", "passes"),
    [
        (Estimate(0.05, 0.01, 0.09), True),
        (Estimate(-0.01, -0.03, 0.01), True),  # could be chance, and small
        (Estimate(-0.02, -0.05, 0.01), True),  # exactly what is allowed
        (Estimate(-0.021, -0.05, 0.01), False),  # larger than allowed, though it could be chance
        (Estimate(-0.01, -0.015, -0.005), False),  # smaller than allowed, but surely a drop
        (Estimate(math.nan, math.nan, math.nan), False),
    ],
)
def test_a_regression_is_a_large_drop_or_a_sure_one(difference: Estimate, passes: bool) -> None:
    assert failed(METRICS, difference) == ([] if passes else ["balanced accuracy, new − champion"])


def test_a_number_missing_from_the_metrics_is_named() -> None:
    metrics = copy.deepcopy(METRICS)
    del metrics["fp32"]["per_class"]["pro"]
    with pytest.raises(Problem, match=r"no number fp32\.per_class\.pro\.recall\.value; `dvc repro"):
        gate.verdict(metrics, BOUNDS, None, KEYS)


def test_the_table_marks_what_fell_short_and_nothing_else() -> None:
    checks = gate.verdict(with_value("fp32.ece.value", 0.2), BOUNDS, Estimate(-0.3, -0.4, -0.2), KEYS)
    lines = gate.table(checks).splitlines()
    assert len(lines) == len(checks) == 9
    assert [line.split("  ")[1] for line in lines if "FAILS" in line] == ["ECE", "balanced accuracy, new − champion"]
    assert "0.2000  FAILS  ≤ 0.1500" in gate.table(checks)
    assert "(-0.4000 to -0.2000)" in gate.table(checks)
