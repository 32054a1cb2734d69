"""The gate: every bound of each file refuses on its own, and nothing that is unknown passes."""

import json
import math
from typing import Any

import pytest
import yaml

from pipeline.evaluation.learning_curve import Folds, Point
from pipeline.evaluation.metrics import Estimate, wilson
from pipeline.evaluation.patients import Patients
from pipeline.evaluation.report import Report
from pipeline.evaluation.spread import OutOfFold
from pipeline.registry import bounds, gate
from pipeline.stage import Problem
from tests import measured
from tests.project import ROOT

KEYS = measured.KEYS
DEMO = (ROOT / "presets/gates/demo.yaml").read_text()
BOUNDS = bounds.read(DEMO)
# Each check of a file, with the number that it reads, exactly at its bound, and the side that fails.
OF_A_FILE = {
    "balanced accuracy": ("{file}.balanced_accuracy", 0.60, -0.001),
    **{f"recall of {key}": (f"{{file}}.per_class.{key}.recall", 0.40, -0.001) for key in KEYS},
    "malignant sensitivity": ("{file}.malignant_sensitivity", 0.85, -0.001),
    "ECE": ("{file}.ece", 0.15, 0.001),
    "referred": ("abstention.{file}.referred", 0.20, 0.001),
    "unlikeness AUROC": ("abstention.{file}.foreign.textures.auroc", 0.90, -0.001),
}
CHECKS: dict[str, tuple[str, float, float]] = {
    **{name: (path.format(file="fp32"), bound, change) for name, (path, bound, change) in OF_A_FILE.items()},
    **{f"INT8 {name}": (path.format(file="int8"), bound, change) for name, (path, bound, change) in OF_A_FILE.items()},
    "margin over colour": ("margin_over_colour", 0.20, -0.001),
    "cells painted over": ("audit.cells_masked.balanced_accuracy", 0.40, 0.001),
    "corner drop": ("audit.corner_of_another.drop", 0.05, 0.001),
    "INT8 drop": ("int8_vs_fp32.balanced_accuracy_drop", 0.03, 0.001),
}
AT_BOUNDS = {path: bound for path, bound, _ in CHECKS.values()}


def failed(values: dict[str, float], regression: Estimate | None = None, judge: bounds.Gate = BOUNDS) -> list[str]:
    verdict = gate.verdict(measured.report(values), judge, regression, KEYS)
    return [check.name for check in verdict if not check.passed]


def changed(**keys: Any) -> bounds.Gate:
    """The demo's bounds but for some, each named as `fp32.max_ece` with `__` for the dot."""
    raw = yaml.safe_load(DEMO)
    for key, value in keys.items():
        *section, last = key.split("__")
        (raw[section[0]] if section else raw)[last] = value
    return bounds.read(yaml.safe_dump(raw))


def test_a_model_exactly_at_every_bound_passes() -> None:
    assert failed(AT_BOUNDS, Estimate(0.0, -0.01, 0.01)) == []


@pytest.mark.parametrize("name", CHECKS)
def test_a_hair_beyond_one_bound_fails_that_check_alone(name: str) -> None:
    path, bound, change = CHECKS[name]
    assert failed(AT_BOUNDS | {path: bound + change}) == [name]


def test_bounds_of_the_two_files_are_their_own() -> None:
    assert failed(AT_BOUNDS, judge=changed(int8__max_ece=0.1)) == ["INT8 ECE"]
    assert failed(AT_BOUNDS, judge=changed(fp32__min_class_recall=0.5)) == [f"recall of {key}" for key in KEYS]


@pytest.mark.parametrize(
    ("key", "bound", "fails"),
    [  # `measured` gives every estimate the interval 0.8 to 0.95 at least
        ("fp32__min_balanced_accuracy", 0.85, "balanced accuracy"),
        ("int8__min_balanced_accuracy", 0.85, "INT8 balanced accuracy"),
        ("fp32__min_class_recall", 0.85, "recall of benign"),
        ("int8__min_malignant_sensitivity", 0.85, "INT8 malignant sensitivity"),
        ("fp32__max_ece", 0.9, "ECE"),
        ("int8__max_referred", 0.9, "INT8 referred"),
        ("fp32__min_unlikeness_auroc", 0.85, "unlikeness AUROC"),
        ("min_margin_over_colour", 0.85, "margin over colour"),
        ("max_cells_masked", 0.9, "cells painted over"),
        ("max_corner_drop", 0.9, "corner drop"),
        ("max_int8_drop", 0.9, "INT8 drop"),
    ],
)
def test_a_bound_holds_for_the_worse_end_of_the_interval_where_it_says_so(key: str, bound: float, fails: str) -> None:
    values = measured.good({"abstention.int8.referred": 0.9})
    assert failed(values, judge=changed(**{"int8__max_referred": 1.0, key: bound})) == []
    strict = changed(**{"int8__max_referred": 1.0, key: {"bound": bound, "of": "interval"}})
    assert failed(values, judge=strict)[0] == fails


def test_the_interval_is_the_wider_one_of_the_bootstrap_and_wilsons() -> None:
    """All of 60 images right: the bootstrap has no width, and Wilson's interval begins at 0.9398."""
    plain = measured.plain(measured.good())
    certain = {"value": 1.0, "low": 1.0, "high": 1.0}
    by_wilson = {"value": 1.0, "low": wilson(60, 60).low, "high": 1.0}
    judge = changed(fp32__min_malignant_sensitivity={"bound": 0.95, "of": "interval"})

    def fails(bootstrap: dict[str, float], independent: dict[str, float]) -> bool:
        plain["fp32"]["malignant_sensitivity"] = bootstrap
        plain["fp32"]["wilson"]["malignant_sensitivity"] = independent
        found = Report.model_validate_json(json.dumps(plain))
        return any(c.name == "malignant sensitivity" and not c.passed for c in gate.verdict(found, judge, None, KEYS))

    assert by_wilson["low"] == pytest.approx(0.9398, abs=1e-4)
    assert fails(certain, by_wilson)
    assert fails(by_wilson, certain)
    assert not fails(certain, certain)


def test_referrals_have_wilsons_interval_too() -> None:
    """None of 60 images referred: by Wilson it may be 6 %."""
    plain = measured.plain(measured.good())
    plain["abstention"]["fp32"]["referred"] = {"value": 0.0, "low": 0.0, "high": 0.0}
    plain["split"]["test"] = 60
    judge = changed(fp32__max_referred={"bound": 0.05, "of": "interval"}, int8__max_referred=1.0)
    verdict = gate.verdict(Report.model_validate_json(json.dumps(plain)), judge, None, KEYS)
    [check] = [check for check in verdict if not check.passed]
    assert (check.name, round(check.value, 4)) == ("referred", round(wilson(0, 60).high, 4))
    assert "the upper end of 0.000 [0.000, 0.060]" in check.bound


def test_another_laboratorys_smears_need_not_be_unlike() -> None:
    plain = measured.plain(measured.good())
    smears = plain["abstention"]["fp32"]["foreign"]["noise"] | {"auroc": {"value": 0.5, "low": 0.4, "high": 0.6}}
    plain["abstention"]["fp32"]["foreign"]["another laboratory"] = smears
    verdict = gate.verdict(Report.model_validate_json(json.dumps(plain)), BOUNDS, None, KEYS)
    assert [check.name for check in verdict if not check.passed] == []


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_what_is_not_a_number_never_reaches_the_gate(unknown: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        Estimate(unknown, unknown, unknown)


def test_without_a_champion_there_is_no_comparison() -> None:
    assert len(gate.verdict(measured.report(), BOUNDS, None, KEYS)) == len(CHECKS) + 1  # of groups


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


@pytest.mark.parametrize("file", ["fp32", "int8"])
def test_what_was_not_measured_is_named(file: str) -> None:
    with pytest.raises(Problem, match="no recall of other; `dvc repro"):
        gate.verdict(measured.report(), BOUNDS, None, (*KEYS, "other"))
    plain = measured.plain()
    del plain[file]["malignant_sensitivity"]
    found = Report.model_validate_json(json.dumps(plain))
    with pytest.raises(Problem, match=r"no (INT8 )?malignant sensitivity; `dvc repro"):
        gate.verdict(found, BOUNDS, None, KEYS)
    assert gate.verdict(found, BOUNDS, None, KEYS, malignancy=False)
    plain = measured.plain()
    plain["abstention"][file]["foreign"] = {}
    with pytest.raises(Problem, match=r"no (INT8 )?unlikeness of images that are no smears; `dvc repro"):
        gate.verdict(Report.model_validate_json(json.dumps(plain)), BOUNDS, None, KEYS)


def test_the_table_marks_what_fell_short_and_nothing_else() -> None:
    checks = gate.verdict(measured.report(AT_BOUNDS | {"fp32.ece": 0.2}), BOUNDS, Estimate(-0.3, -0.4, -0.2), KEYS)
    lines = gate.table(checks).splitlines()
    assert len(lines) == len(checks) == 24
    assert [line.split("  ")[1] for line in lines if "FAILS" in line] == ["ECE", "balanced accuracy, new − champion"]
    assert "0.2000  FAILS  ≤ 0.1500" in gate.table(checks)
    assert "(-0.4000 to -0.2000)" in gate.table(checks)


def folds(report: Report, groups: int, recall: float) -> Report:
    """A report of two test groups a class, beside which every group was held out once."""
    estimate = Estimate(recall, recall, recall)
    fields: dict[str, Any] = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "colour_only"), estimate)
    fields |= {"margin_over_colour": estimate, **{f"recall_{key}": estimate for key in KEYS}}
    fields |= {"images": 99, "groups": 4 * groups, "fewest_groups": groups, "trained_on": 60.0, "each_fold": [recall]}
    found = Folds(key="k", folds=3, by_share={"1": Point(**fields)})
    few = report.split.model_copy(update={"fewest_test_groups": 2})
    return report.model_copy(update={"split": few, "cross_validation": found})


@pytest.mark.parametrize(("groups", "passes"), [(4, True), (3, False)])
def test_with_folds_the_groups_of_all_of_them_count_and_no_other_folds(groups: int, passes: bool) -> None:
    report = folds(measured.report(measured.good()), 20, 0.9)
    spread = OutOfFold(folds=2, trained_on=50, seeds=[1], each_seed=[0.9], each_fold=[[0.9, 0.9]])
    held_out = report.split.model_copy(update={"fewest_test_groups": groups})
    checks = gate.verdict(report.model_copy(update={"out_of_fold": spread, "split": held_out}), BOUNDS, None, KEYS)
    (check,) = (check for check in checks if "groups" in check.name or "cross" in check.name)
    assert check == gate.Check("held-out groups a class", groups, "≥ 4", passes)


def test_too_few_groups_are_refused_and_the_way_out_is_named() -> None:
    report = measured.report(measured.good())
    few = report.model_copy(update={"split": report.split.model_copy(update={"fewest_test_groups": 3})})
    (check,) = (check for check in gate.verdict(few, BOUNDS, None, KEYS) if not check.passed)
    assert (check.name, check.value) == ("test groups a class", 3)
    assert "≥ 4" in check.bound
    assert "python -m pipeline.cross_validate" in check.bound
    assert [check.name for check in gate.verdict(few, changed(min_test_groups=3), None, KEYS) if not check.passed] == []


@pytest.mark.parametrize(("groups", "recall", "fails"), [(4, 0.7, 0), (3, 0.7, 1), (4, 0.5, 1), (4, 0.3, 5)])
def test_where_the_test_split_has_too_few_groups_cross_validation_is_judged(
    groups: int, recall: float, fails: int
) -> None:
    checks = gate.verdict(folds(measured.report(measured.good()), groups, recall), BOUNDS, None, KEYS)
    failed = [check.name for check in checks if not check.passed]
    assert len(failed) == fails
    assert all(name.startswith("cross-validated ") for name in failed)
    assert {"cross-validated balanced accuracy", "cross-validated recall of pro"} <= {check.name for check in checks}


def test_a_limit_at_an_end_fails_where_the_gate_says_so() -> None:
    report = measured.report(measured.good()).model_copy(update={"limits_at_ends": ["The temperature is 20."]})
    assert [check.name for check in gate.verdict(report, BOUNDS, None, KEYS) if not check.passed] == []
    strict = gate.verdict(report, changed(limits_at_ends="refuse"), None, KEYS)
    (check,) = (check for check in strict if not check.passed)
    assert (check.name, check.bound) == ("limits at an end", "= 0 The temperature is 20.")


def test_a_gate_of_before_there_were_some_bounds_still_judges() -> None:
    newer = ("max_corner_drop", "min_test_groups", "limits_at_ends")
    old = {key: value for key, value in yaml.safe_load(DEMO).items() if key not in newer}
    read = bounds.read(yaml.safe_dump(old))
    assert (read.max_corner_drop.bound, read.min_test_groups, read.limits_at_ends) == (1, 1, "warn")
    assert failed(measured.good({"audit.corner_of_another.drop": 0.9}), judge=read) == []


def test_where_a_label_is_the_patients_the_patients_are_judged() -> None:
    raw = measured.plain(measured.good())
    of_patients = {name: measured.plain(measured.good())[name] for name in ("fp32", "int8")}
    wanted = Patients.model_fields.keys()
    patients = {
        name: {"patients": 30} | {key: value for key, value in found.items() if key in wanted}
        for name, found in of_patients.items()
    }
    patients["fp32"]["per_class"]["pro"]["recall"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    raw["fp32"]["per_class"]["pre"]["recall"] = {"value": 0.1, "low": 0.1, "high": 0.3}  # of cells: not judged
    report = Report.model_validate_json(json.dumps(raw | {"patients": patients}))
    assert [check.name for check in gate.verdict(report, BOUNDS, None, KEYS) if not check.passed] == ["recall of pro"]
