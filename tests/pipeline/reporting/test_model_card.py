"""What the model card says where numbers are at an end."""

import json
import re
from pathlib import Path

import pandas as pd

from leukdetect.contract import FILES
from pipeline import params
from pipeline.evaluation import slices
from pipeline.evaluation.patients import Patients
from pipeline.evaluation.report import Report
from pipeline.reporting import model_card
from tests import measured, tiny_model

SOURCE = {"origin": "a test", "licence": "MIT", "sha256": "ab" * 32, "images": {}}


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
