"""Whether a model may serve: its measured numbers against `params.gate`, and against the present champion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.metrics import Estimate
from pipeline.params import Gate
from pipeline.stage import Problem


@dataclass(frozen=True)
class Check:
    """One row of the verdict."""

    name: str
    value: float
    bound: str
    passed: bool


def verdict(metrics: dict[str, Any], gate: Gate, regression: Estimate | None, class_keys: Sequence[str]) -> list[Check]:
    """Judges a model. What is not a number (NaN) never passes.

    Args:
        metrics: reports/metrics.json.
        gate: the bounds.
        regression: the balanced accuracy of the new model minus the champion's on the same test images, from
            `metrics.paired_bootstrap`; None where there is no champion to compare with.
        class_keys: the classes whose recall is bounded.

    Raises:
        Problem: metrics lacks a number that is bounded.
    """
    checks = [
        _floor("balanced accuracy", number(metrics, "fp32.balanced_accuracy.value"), gate.min_balanced_accuracy),
        *(
            _floor(f"recall of {key}", number(metrics, f"fp32.per_class.{key}.recall.value"), gate.min_class_recall)
            for key in class_keys
        ),
        _floor(
            "malignant sensitivity", number(metrics, "fp32.malignant_sensitivity.value"), gate.min_malignant_sensitivity
        ),
        _ceiling("ECE", number(metrics, "fp32.ece.value"), gate.max_ece),
        _floor("margin over colour", number(metrics, "margin_over_colour.value"), gate.min_margin_over_colour),
        _ceiling(
            "cells painted over",
            number(metrics, "audit.cells_masked.balanced_accuracy.value"),
            gate.max_cells_masked,
        ),
        _ceiling("INT8 drop", number(metrics, "int8_vs_fp32.balanced_accuracy_drop.value"), gate.max_int8_drop),
    ]
    if regression is not None:
        checks.append(_no_regression(regression, gate.max_regression))
    return checks


def number(metrics: dict[str, Any], field: str) -> float:
    """The number at a dotted path of metrics.json; null is NaN.

    Raises:
        Problem: there is none.
    """
    value: Any = metrics
    try:
        for key in field.split("."):
            value = value[key]
        return math.nan if value is None else float(value)
    except (KeyError, TypeError) as error:
        raise Problem(
            f"reports/metrics.json has no number {field}; `dvc repro -f evaluate` writes the file anew"
        ) from error


def table(checks: Sequence[Check]) -> str:
    """The verdict as plain text, one check a line, with what fell short marked FAILS."""
    width = max(len(check.name) for check in checks)
    return "\n".join(
        f"  {check.name:<{width}}  {check.value:>8.4f}  {'ok   ' if check.passed else 'FAILS'}  {check.bound}"
        for check in checks
    )


def _floor(name: str, value: float, bound: float) -> Check:
    return Check(name, value, f"≥ {bound:.4f}", value >= bound)


def _ceiling(name: str, value: float, bound: float) -> Check:
    return Check(name, value, f"≤ {bound:.4f}", value <= bound)


def _no_regression(difference: Estimate, allowed: float) -> Check:
    """Fails on a drop larger than allowed, and on any drop that is surely one: an interval wholly below zero."""
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return Check(
        "balanced accuracy, new − champion",
        difference.value,
        f"≥ {-allowed:.4f}, and its interval ({interval}) not wholly below 0",
        difference.value >= -allowed and difference.high >= 0,
    )
