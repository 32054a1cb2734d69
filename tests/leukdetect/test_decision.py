from pathlib import Path

import numpy as np
import pytest

from leukdetect import contract
from leukdetect.contract import Contract
from leukdetect.decision import Decision, decide
from tests import tiny_model

THRESHOLDS = contract.Thresholds(malignant=0.4, confidence=0.5, brightness=(20, 240), min_sharpness=5.0, min_stain=0.3)


@pytest.fixture(scope="module")
def promise(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "m.onnx", thresholds=THRESHOLDS)


def decided(
    promise: Contract,
    probabilities: list[float],
    *,
    unlikeness: float = 0.3,
    brightness: float = 150.0,
    sharpness: float = 50.0,
    stain: float = 0.9,
) -> Decision:
    return decide(np.array(probabilities, np.float32), unlikeness, brightness, sharpness, stain, promise)


def codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


def test_a_clear_malignant_image_is_reported_as_a_resemblance(promise: Contract) -> None:
    decision = decided(promise, [0.02, 0.1, 0.8, 0.08])
    assert (decision.kind, decision.malignant) == ("report", True)
    assert decision.wording == "Resembles Pre-B ALL; confirm by flow cytometry."
    assert decision.p_malignant == pytest.approx(0.98)


def test_a_clear_benign_image_is_reported_without_a_promise(promise: Contract) -> None:
    decision = decided(promise, [0.9, 0.04, 0.03, 0.03])
    assert (decision.kind, decision.malignant) == ("report", False)
    assert decision.wording == "Resembles Benign (hematogone); this alone does not exclude leukaemia."


@pytest.mark.parametrize(
    ("signal", "value", "code"),
    [
        ("unlikeness", 1.2, "unlike_training_images"),
        ("brightness", 12.0, "too_dark"),
        ("brightness", 250.0, "too_bright"),
        ("sharpness", 1.0, "blurred"),
        ("stain", 0.1, "no_stained_nucleus"),
    ],
)
def test_what_the_model_cannot_judge_is_referred_with_the_number(
    promise: Contract, signal: str, value: float, code: str
) -> None:
    decision = decided(promise, [0.9, 0.04, 0.03, 0.03], **{signal: value})
    assert (decision.kind, codes(decision)) == ("refer", [code])
    assert f"{value:g}" in decision.reasons[0].detail
    assert decision.wording == f"Refer to a haematologist: {decision.reasons[0].brief}."


@pytest.mark.parametrize(("signal", "value"), [("unlikeness", 1.0), ("brightness", 20.0), ("brightness", 240.0)])
def test_a_value_at_its_threshold_is_accepted(promise: Contract, signal: str, value: float) -> None:
    assert decided(promise, [0.9, 0.04, 0.03, 0.03], **{signal: value}).kind == "report"


def test_an_uncertain_subtype_is_referred_and_its_malignancy_is_still_said(promise: Contract) -> None:
    decision = decided(promise, [0.02, 0.4, 0.38, 0.2])
    assert codes(decision) == ["low_confidence"]
    assert decision.wording.endswith("The malignant classes together reach 98.0\u00a0%.")


def test_a_benign_look_above_the_operating_point_does_not_exclude_malignancy(promise: Contract) -> None:
    decision = decided(promise, [0.55, 0.2, 0.15, 0.1])
    assert (codes(decision), decision.malignant) == (["malignant_not_excluded"], True)
    assert "malignancy is not excluded" in decision.wording
    assert "Benign (hematogone)" in decision.reasons[0].detail


def test_a_malignant_look_below_the_operating_point_is_not_confirmed(tmp_path: Path) -> None:
    strict = tiny_model.write(tmp_path / "m.onnx", thresholds=THRESHOLDS.model_copy(update={"malignant": 0.9}))
    decision = decided(strict, [0.3, 0.6, 0.05, 0.05])
    assert (codes(decision), decision.malignant) == (["malignant_not_confirmed"], False)
    assert "flow cytometry" not in decision.wording


def test_all_reasons_are_given(promise: Contract) -> None:
    decision = decided(promise, [0.45, 0.3, 0.15, 0.1], unlikeness=2, brightness=3, sharpness=0)
    assert codes(decision) == [
        "too_dark",
        "blurred",
        "unlike_training_images",
        "low_confidence",
        "malignant_not_excluded",
    ]


def test_the_classes_that_reach_their_threshold_cannot_be_excluded(promise: Contract) -> None:
    assert decided(promise, [0.02, 0.1, 0.8, 0.08]).not_excluded == (1, 2)  # at 0.1 early is in
    assert decided(promise, [0.9, 0.04, 0.03, 0.03]).not_excluded == (0,)


def test_the_highest_class_is_never_excluded(tmp_path: Path) -> None:
    sets = contract.PredictionSets(error=0.05, thresholds=[0.99] * 4, images=[50] * 4)
    strict = tiny_model.write(tmp_path / "m.onnx", prediction_sets=sets)
    assert decided(strict, [0.2, 0.1, 0.6, 0.1]).not_excluded == (2,)


def test_the_set_selects_nothing(promise: Contract, tmp_path: Path) -> None:
    wide = contract.PredictionSets(error=0.05, thresholds=[0.0] * 4, images=[3] * 4)
    other = tiny_model.write(tmp_path / "m.onnx", thresholds=THRESHOLDS, prediction_sets=wide)
    narrow, broad = (decided(each, [0.02, 0.1, 0.8, 0.08]) for each in (promise, other))
    assert broad.not_excluded == (0, 1, 2, 3)
    assert (broad.kind, broad.reasons, broad.wording) == (narrow.kind, narrow.reasons, narrow.wording)


def test_a_model_file_of_version_1_has_no_sets_and_nuclei_are_not_looked_for(tmp_path: Path) -> None:
    limits = THRESHOLDS.model_copy(update={"min_stain": 0.0})
    old = tiny_model.write(tmp_path / "m.onnx", version=1, prediction_sets=None, thresholds=limits)
    decision = decided(old, [0.9, 0.04, 0.03, 0.03], stain=0)
    assert (decision.kind, decision.not_excluded) == ("report", None)
