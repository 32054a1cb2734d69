"""Answers put together by patient."""

from pathlib import Path

import numpy as np
import pytest

from leukdetect.contract import Contract
from pipeline.evaluation import metrics, patients
from pipeline.evaluation.answers import Answers, Sample
from tests import tiny_model

# Three patients of eight cells: most of the malignant ones' look healthy, and the mean still tells.
GROUPS = np.repeat(["001", "002", "003"], 8)
LABELS = np.repeat([0, 1, 1], 8)
SURE, HEALTHY = (0.0, 1.0), (0.6, 0.4)
ROWS = np.array([(0.9, 0.1)] * 8 + [HEALTHY] * 5 + [SURE] * 3 + [HEALTHY] * 7 + [SURE])


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Answers, Sample, Contract]:
    contract = tiny_model.write(tmp_path / "model.onnx", classes=tiny_model.CLASSES[:2])
    found = Answers(
        probabilities=ROWS,
        unlikeness=np.zeros(24),
        embedding=np.zeros((24, 8)),
        cam=np.zeros((24, 2, 4, 4)),
        p_malignant=ROWS[:, 1],
        malignant=ROWS[:, 1] >= 0.4,
        reasons=[set() for _ in ROWS],
    )
    weights = metrics.group_weights(LABELS, GROUPS, 100, 0)
    return found, Sample(np.zeros((24, 8, 8, 3), np.uint8), LABELS, GROUPS, weights), contract


def test_a_patients_answer_is_the_mean_of_all_images(asked: tuple[Answers, Sample, Contract]) -> None:
    found = patients.measure(*asked)  # means of P(early): 0.1, 0.625, 0.475
    assert found.patients == 3
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.per_class["early"].recall.value == pytest.approx(0.5)
    assert found.wilson["recall_early"] == metrics.wilson(1, 2)
    assert found.malignant_sensitivity
    assert found.malignant_specificity
    assert found.malignant_sensitivity.value == 1  # at the operating point of 0.4
    assert found.malignant_specificity.value == 1  # a sum over the eight would be 0.8
