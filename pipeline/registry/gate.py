"""Whether a model may serve: what was measured of each of its files against gate.yaml, and against the champion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation import metrics
from pipeline.evaluation.abstention import Abstention
from pipeline.evaluation.classification import WholeHeadline
from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.out_of_distribution import OTHER_LABORATORY
from pipeline.evaluation.patients import Patients
from pipeline.evaluation.report import Report
from pipeline.registry.bounds import Bound, FileBounds, Gate
from pipeline.stage import Problem

Cases = WholeHeadline | Patients


@dataclass(frozen=True)
class Check:
    """One row of the verdict."""

    name: str
    value: float
    bound: str
    passed: bool


def verdict(
    measured: Report, gate: Gate, regression: Estimate | str | None, class_keys: Sequence[str], malignancy: bool = True
) -> list[Check]:
    """Judges a model: each file that may serve, and what holds of both.

    Args:
        measured: reports/metrics.json.
        gate: the bounds.
        regression: the balanced accuracy of the new model minus the champion's on the same images, from
            `metrics.paired_bootstrap`; None where there is no champion to compare with; where there is one, and they
            cannot be compared, why.
        class_keys: the recipe's classes.
        malignancy: whether some of them are malignant and some are not.

    Raises:
        Problem: something that has a bound was not measured.
    """
    cases = measured.patients or measured  # what a label is of
    files: dict[str, tuple[Cases, Abstention, FileBounds]] = {
        "": (cases.fp32, measured.abstention.fp32, gate.fp32),
        "INT8 ": (cases.int8, measured.abstention.int8, gate.int8),
    }
    for prefix, (file, declines, _) in files.items():
        if absent := _absent(file, declines, class_keys, malignancy):
            missing = f"reports/metrics.json has no {prefix}{', '.join(absent)}"
            raise Problem(f"{missing}; `dvc repro -f evaluate` measures it")
    checks = [
        *(check for prefix, parts in files.items() for check in _of_file(prefix, *parts, measured.split.test)),
        _floor("margin over colour", measured.margin_over_colour, gate.min_margin_over_colour),
        _ceiling("cells painted over", measured.audit.cells_masked.balanced_accuracy, gate.max_cells_masked),
        _ceiling("corner drop", measured.audit.corner_of_another.drop, gate.max_corner_drop),
        _ceiling("INT8 drop", measured.int8_vs_fp32.balanced_accuracy_drop, gate.max_int8_drop),
        *_of_groups(measured, gate),
    ]
    if gate.limits_at_ends == "refuse":
        ends = measured.limits_at_ends
        checks.append(Check("limits at an end", len(ends), f"= 0 {'; '.join(ends)}".rstrip(), not ends))
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


def _of_file(prefix: str, file: Cases, declines: Abstention, gate: FileBounds, images: int) -> list[Check]:
    floors = [("balanced accuracy", "balanced_accuracy", file.balanced_accuracy, gate.min_balanced_accuracy)]
    floors += [
        (f"recall of {key}", f"recall_{key}", each.recall, gate.min_class_recall)
        for key, each in file.per_class.items()
    ]
    if found := file.malignant_sensitivity:
        floors.append(("malignant sensitivity", "malignant_sensitivity", found, gate.min_malignant_sensitivity))
    referred = _wider(declines.referred, metrics.wilson(round(declines.referred.value * images), images))
    return [
        *(_floor(f"{prefix}{name}", _wider(each, file.wilson[key]), bound) for name, key, each, bound in floors),
        _ceiling(f"{prefix}ECE", file.ece, gate.max_ece),
        _ceiling(f"{prefix}referred", referred, gate.max_referred),
        _floor(f"{prefix}unlikeness AUROC", declines.unlikeness_auroc(), gate.min_unlikeness_auroc),
    ]


def _of_groups(measured: Report, gate: Gate) -> list[Check]:
    """Whether enough groups of each class were held out for a claim: in the test split, or in all folds together.

    Else those of cross-validation count, if it was run with this recipe, and its figures are judged beside the file's.
    """
    least, found = gate.min_test_groups, measured.split.fewest_test_groups
    if measured.out_of_fold:
        return [Check("held-out groups a class", found, f"≥ {least}", found >= least)]
    folds = measured.cross_validation.by_share.get("1") if measured.cross_validation else None
    if found >= least:
        return [Check("test groups a class", found, f"≥ {least}", True)]
    if folds is None or folds.fewest_groups is None:
        way = "or name estimate.folds in params.yaml, or run `python -m pipeline.cross_validate` and then `dvc repro`"
        return [Check("test groups a class", found, f"≥ {least}; {way}: it is read", False)]
    recalls = folds.__pydantic_extra__.items()
    return [
        Check("cross-validated groups a class", folds.fewest_groups, f"≥ {least}", folds.fewest_groups >= least),
        _floor("cross-validated balanced accuracy", folds.balanced_accuracy, gate.fp32.min_balanced_accuracy),
        *(
            _floor(f"cross-validated {name.replace('_', ' of ', 1)}", each, gate.fp32.min_class_recall)
            for name, each in recalls
        ),
    ]


def _absent(file: Cases, declines: Abstention, class_keys: Sequence[str], malignancy: bool) -> list[str]:
    """What has to be measured of a file and was not."""
    return [
        *(f"recall of {key}" for key in class_keys if key not in file.per_class),
        *(["malignant sensitivity"] if malignancy and file.malignant_sensitivity is None else []),
        *([] if set(declines.foreign) - {OTHER_LABORATORY} else ["unlikeness of images that are no smears"]),
    ]


def _wider(bootstrap: Estimate, wilson: Estimate) -> Estimate:
    """The value in the interval that reaches as far as the wider one on each side.

    Few groups that are all alike leave the bootstrap without a width, and Wilson takes images of one patient as
    independent: neither alone is safe.
    """
    return Estimate(bootstrap.value, min(bootstrap.low, wilson.low), max(bootstrap.high, wilson.high))


def _floor(name: str, measured: Estimate, bound: Bound) -> Check:
    value = measured.low if bound.of == "interval" else measured.value
    return Check(name, value, f"≥ {bound.bound:.4f}{_of(bound, 'lower', measured)}", value >= bound.bound)


def _ceiling(name: str, measured: Estimate, bound: Bound) -> Check:
    value = measured.high if bound.of == "interval" else measured.value
    return Check(name, value, f"≤ {bound.bound:.4f}{_of(bound, 'upper', measured)}", value <= bound.bound)


def _of(bound: Bound, end: str, measured: Estimate) -> str:
    return f", the {end} end of {measured}" if bound.of == "interval" else ""


def _no_regression(difference: Estimate | str, allowed: float) -> Check:
    """Fails on a drop larger than allowed, on any that is surely one (an interval wholly below zero), and where nobody
    knows whether it is worse than the champion, unless any drop is allowed."""
    name = "balanced accuracy, new − champion"
    if isinstance(difference, str):
        bound = f"≥ {-allowed:.4f}, and not known: {difference} (max_regression: 1 waives it)"
        return Check(name, math.nan, bound, allowed == 1)
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return Check(
        name,
        difference.value,
        f"≥ {-allowed:.4f}, and its interval ({interval}) not wholly below 0",
        difference.value >= -allowed and difference.high >= 0,
    )
