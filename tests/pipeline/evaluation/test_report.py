"""reports/metrics.json, the model card for machines (tests/pipeline/test_evaluate.py holds a run's against it)."""

import functools
import json
from pathlib import Path

import pytest

from pipeline.evaluation import report
from pipeline.registry.bounds import FileBounds
from pipeline.stage import Problem
from tests import measured

REGENERATE = (
    'python -c "import json; from pipeline.evaluation import report as m; m.SCHEMA_FILE.write_text('
    "json.dumps(m.Report.model_json_schema(), indent=2, ensure_ascii=False) + '\\n')\""
)


def test_the_published_schema_is_that_of_the_report() -> None:
    assert json.loads(report.SCHEMA_FILE.read_text()) == report.Report.model_json_schema(), (
        f"pipeline/evaluation/metrics.schema.json is out of date; make it anew with\n{REGENERATE}"
    )


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("fp32.ece", None, r"fp32\.ece"),
        ("abstention.int8.aurc.low", 2.0, r"abstention\.int8\.aurc"),
        ("abstention.int8", None, r"abstention\.int8"),
        ("prediction_sets.fp32", None, r"prediction_sets\.fp32"),
        ("explanations.empty.value", float("nan"), r"explanations\.empty"),
        ("explanations.surprise", 1, r"explanations\.surprise"),
        ("int8_vs_fp32.max_difference", float("nan"), r"int8_vs_fp32\.max_difference"),
        ("fp32.ece.value", "0.05", r"fp32\.ece\.value"),
        ("synthetic", "no", "synthetic"),
        ("surprise", 1, "surprise"),
    ],
)
def test_what_breaks_the_schema_is_refused_with_its_place(tmp_path: Path, path: str, value: object, where: str) -> None:
    broken = measured.plain()
    *parents, last = path.split(".")
    section = functools.reduce(lambda part, key: part[key], parents, broken)
    section[last] = value
    if value is None:
        del section[last]
    (tmp_path / "metrics.json").write_text(json.dumps(broken))
    with pytest.raises(Problem, match=f"broken at {where}"):
        report.read(tmp_path / "metrics.json")


def test_what_was_not_measured_is_left_out_and_numbers_have_six_decimals() -> None:
    plain = measured.report({"fp32.ece": 0.123456789, "margin_over_colour": -1e-9}).plain()
    assert plain["fp32"]["ece"]["value"] == 0.123457
    assert str(plain["margin_over_colour"]["value"]) == "0.0"
    assert "cross_validation" not in plain
    assert "cell" not in plain["explanations"]


def test_the_headline_is_what_the_gate_has_bounds_for_and_short() -> None:
    found = measured.report({"int8.per_class.pre.recall": 0.123456789, "abstention.fp32.foreign.noise.auroc": 0.7})
    headline = found.headline()
    of_a_file = {f"{end}_{name}" for end, name in (("min", "balanced_accuracy"), ("max", "ece"), ("max", "referred"))}
    of_a_file |= {"min_class_recall", "min_malignant_sensitivity", "min_unlikeness_auroc"}
    assert of_a_file == set(FileBounds.model_fields)
    names = {"balanced_accuracy", "ece", "referred", "lowest_recall", "malignant_sensitivity", "unlikeness_auroc"}
    assert set(headline["fp32"]) == set(headline["int8"]) == names
    assert set(headline) == {"fp32", "int8", "margin_over_colour", "cells_masked", "corner_drop", "int8_drop"}
    assert headline["int8"]["lowest_recall"] == 0.123457
    assert headline["fp32"]["unlikeness_auroc"] == 0.7  # of the kind that is told from smears worst


def test_the_headline_lacks_what_means_nothing_for_the_classes() -> None:
    plain = measured.plain()
    for file in ("fp32", "int8"):
        plain[file]["malignant_sensitivity"] = None
    assert "malignant_sensitivity" not in report.Report.model_validate(plain, strict=False).headline()["fp32"]
