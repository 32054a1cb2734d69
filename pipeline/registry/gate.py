"""Whether a model may serve: its measured numbers against `params.gate`, and against the present champion."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.report import Report
from pipeline.params import Gate
from pipeline.stage import Problem


@dataclass(frozen=True)
class Check:
    """One row of the verdict."""

    name: str
    value: float
    bound: str
    passed: bool


def verdict(measured: Report, gate: Gate, regression: Estimate | None, class_keys: Sequence[str]) -> list[Check]:
    """Judges a model.

    Args:
        measured: reports/metrics.json.
        gate: the bounds.
        regression: the balanced accuracy of the new model minus the champion's on the same test images, from
            `metrics.paired_bootstrap`; None where there is no champion to compare with.
        class_keys: the classes whose recall is bounded.

    Raises:
        Problem: a class was not measured.
    """
    fp32, int8 = measured.fp32, measured.int8_vs_fp32
    if absent := [key for key in class_keys if key not in fp32.per_class]:
        raise Problem(f"reports/metrics.json has no recall of {', '.join(absent)}; `dvc repro -f evaluate` measures it")
    sensitivity = fp32.malignant_sensitivity
    checks = [
        _floor("balanced accuracy", fp32.balanced_accuracy, gate.min_balanced_accuracy),
        *(_floor(f"recall of {key}", fp32.per_class[key].recall, gate.min_class_recall) for key in class_keys),
        *([_floor("malignant sensitivity", sensitivity, gate.min_malignant_sensitivity)] if sensitivity else []),
        _ceiling("ECE", fp32.ece, gate.max_ece),
        _floor("margin over colour", measured.margin_over_colour, gate.min_margin_over_colour),
        _ceiling("cells painted over", measured.audit.cells_masked.balanced_accuracy, gate.max_cells_masked),
        _ceiling("INT8 drop", int8.balanced_accuracy_drop, gate.max_int8_drop),
    ]
    if regression is not None:
        checks.append(_no_regression(regression, gate.max_regression))
    return checks


def table(checks: Sequence[Check]) -> str:
    """The verdict as plain text, one check a line, with what fell short marked FAILS."""
    width = max(len(check.name) for check in checks)
    return "\n".join(
        f"  {check.name:<{width}}  {check.value:>8.4f}  {'ok   ' if check.passed else 'FAILS'}  {check.bound}"
        for check in checks
    )


def _floor(name: str, measured: Estimate, bound: float) -> Check:
    return Check(name, measured.value, f"≥ {bound:.4f}", measured.value >= bound)


def _ceiling(name: str, measured: Estimate, bound: float) -> Check:
    return Check(name, measured.value, f"≤ {bound:.4f}", measured.value <= bound)


def _no_regression(difference: Estimate, allowed: float) -> Check:
    """Fails on a drop larger than allowed, and on any drop that is surely one: an interval wholly below zero."""
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return Check(
        "balanced accuracy, new − champion",
        difference.value,
        f"≥ {-allowed:.4f}, and its interval ({interval}) not wholly below 0",
        difference.value >= -allowed and difference.high >= 0,
    )
