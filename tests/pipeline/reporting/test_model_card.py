"""What the model card says where numbers are at an end."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from leukdetect.contract import FILES
from pipeline import params
from pipeline.evaluation import slices
from pipeline.evaluation.patients import Patients
from pipeline.evaluation.report import Report
from pipeline.evaluation.spread import OutOfFold
from pipeline.reporting import datasheet, model_card
from tests import measured, tiny_model

SOURCE = {"origin": "a test", "licence": "MIT", "sha256": "ab" * 32, "images": {}}
FOLDS = OutOfFold(
    folds=3, trained_on=66.7, seeds=[7, 8], each_seed=[0.91, 0.93], each_fold=[[0.9, 0.85, 0.95], [0.92, 0.94, 0.96]]
)


def card(report: Report, folder: Path, patient: str = "") -> str:
    split = pd.DataFrame({"patient": [patient]})
    contract = tiny_model.write(folder / "m.onnx")
    return model_card.render(
        report, contract, params.load().wording, SOURCE, split, pd.DataFrame(columns=slices.COLUMNS)
    )


def test_where_nothing_is_reported_no_error_rate_of_it_is_given(tmp_path: Path) -> None:
    text = card(measured.report({"abstention.fp32.referred": 1.0}), tmp_path)
    (line,) = re.findall(r"\| Wrong, of those reported \|.*", text)
    assert line == "| Wrong, of those reported | none is reported | 0.900 [0.800, 0.950] |"


def test_the_card_does_not_round_a_rare_disease_to_none(tmp_path: Path) -> None:
    found = measured.report()
    assert found.operating_point
    rare = found.operating_point.model_copy(update={"prevalence": 0.002})
    text = card(found.model_copy(update={"operating_point": rare}), tmp_path)
    assert "where 0.2% of images are malignant" in text


def test_patients_are_counted_where_the_data_names_them(tmp_path: Path) -> None:
    real = measured.report().model_copy(update={"synthetic": False})
    assert "a group is a patient; there are 1." in card(real, tmp_path, "p1")
    assert "Few patients: 1." in card(real, tmp_path, "p1")
    unnamed = card(real, tmp_path)
    assert "a group is a block of neighbouring file numbers." in unnamed
    assert "The patients are not known, and few" in unnamed
    assert "SYNTHETIC" not in unnamed


def test_too_few_groups_and_limits_at_an_end_are_said(tmp_path: Path) -> None:
    found = measured.report()
    few = found.split.model_copy(update={"fewest_test_groups": 4})
    text = card(found.model_copy(update={"split": few, "limits_at_ends": ["The temperature is 20."]}), tmp_path, "p1")
    assert "**Too few patients for a claim:** 4 of the class with the fewest." in text
    assert "a recall of\n0.51 could not be excluded" in text  # Wilson, four of four: 0.510
    assert "- **At an end:** The temperature is 20." in text
    assert "Too few" not in card(found, tmp_path)


def test_a_patients_figures_are_on_the_card_where_a_label_is_the_patients(tmp_path: Path) -> None:
    raw = measured.plain()
    both = {
        name: {"patients": 30} | {k: v for k, v in raw[name].items() if k in Patients.model_fields} for name in FILES
    }
    text = card(Report.model_validate_json(json.dumps(raw | {"patients": both})), tmp_path)
    assert "(30 patients):" in text
    assert "| Recall of Pro-B ALL | 0.900 [0.800, 0.950] | 0.900 [0.800, 0.950] |" in text


def test_a_card_of_folds_says_whose_figures_these_are_and_why_they_are_fair(tmp_path: Path) -> None:
    folds = measured.report().model_copy(update={"out_of_fold": FOLDS, "synthetic": False})
    text = card(folds, tmp_path)
    plain = " ".join(text.split())
    assert "Each image was answered once, by a model that saw no image of its group." in plain
    assert "trained 6 times for them (3 folds, 2 seeds), each time on 67 images on average" in plain
    assert "The model that serves learnt from all 1, with the same recipe and schedule: no epoch was chosen" in plain
    assert "a fold's images are judged by limits that were fitted to the other folds' answers" in plain
    assert (
        "Seed 7, whose answers are the estimate: 0.910 over all images, 0.900, 0.850, 0.950 in single folds." in plain
    )
    assert "Seed 8: 0.930 over all images, 0.920, 0.940, 0.960 in single folds." in plain
    assert "a balanced accuracy (FP32) of 0.900 [0.700, 1.000] is to be expected there." in plain
    assert "Chosen on what was said of all images out of fold" in plain
    assert not re.search("test split|validation|one split|cross_validate|early stopping", text, re.IGNORECASE)

    few = folds.split.model_copy(update={"fewest_test_groups": 4})
    assert "cross_validate" not in card(folds.model_copy(update={"split": few}), tmp_path)
    table = model_card.table(folds, 200)
    assert table.startswith("Out of fold (3 folds, seeds 7, 8): 1 images in 1 groups")
    assert re.search(r"of single folds +0\.850 to 0\.960\n +of single seeds +0\.910 to 0\.930", table)


def test_a_card_of_one_split_says_so(tmp_path: Path) -> None:
    text = card(measured.report(), tmp_path)
    assert "Test split: 1 images in 1 groups" in text
    assert "- All of this is of one split:" in text
    assert "Chosen on the validation split" in text
    assert "fold's" not in text
    assert model_card.table(measured.report(), 200).startswith("Test split: ")


@pytest.mark.parametrize(("folds", "sides"), [(0, "the split"), (5, "a fold")])
def test_the_datasheet_says_how_groups_are_kept_apart(folds: int, sides: str) -> None:
    split = pd.DataFrame({"class": ["pro"], "patient": [""], "group": ["1"], "split": ["train"]})
    sheet = datasheet.render(SOURCE | {"synthetic": False}, split, 64, folds)
    assert f"so a group never lies on two sides of {sides}." in sheet
    assert ("of 5 folds: each group is held out once" in sheet) == bool(folds)
    assert "\n\n## What it may be used for" in sheet
