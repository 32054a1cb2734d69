"""Limits at the end of their range."""

from pathlib import Path

import pytest

from leukdetect import contract
from pipeline import params
from pipeline.evaluation import limits
from tests import tiny_model

SETTINGS = params.load(Path("presets/demo.yaml")).calibrate


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"temperature": 19.99}, ["temperature is 20, an end of its range (0.05 to 20)"]),
        ({"temperature": 0.0501}, ["temperature is 0.0501"]),
        ({"malignant": 0.5}, ["operating point is 0.500, as high as it may be"]),
        ({"malignant": 0.0001}, ["operating point is 0.000, so low that nearly all is called malignant"]),
        ({"brightness": (0.0, 240.0)}, ["limits of brightness, 0 to 240, reach an end"]),
        ({"brightness": (20.0, 255.0)}, ["limits of brightness, 20 to 255, reach an end"]),
        ({"images": 30}, ["limit of confidence is that of the single most extreme of 30", "limit of unlikeness"]),
        ({"sets": [0.3, 0.0, 0.1, 0.0]}, ["Too few held-out images to ever exclude Early Pre-B ALL, Pro-B ALL."]),
    ],
)
def test_each_limit_at_an_end_is_a_sentence(changes: dict[str, object], said: list[str], tmp_path: Path) -> None:
    made = tiny_model.write(tmp_path / "model.onnx")
    asked = {key: value for key, value in changes.items() if key in contract.Thresholds.model_fields}
    update: dict[str, object] = {"thresholds": made.thresholds.model_copy(update=asked)}
    if "temperature" in changes:
        update["temperature"] = changes["temperature"]
    if "images" in changes:
        update["reference"] = made.reference.model_copy(update={"images": changes["images"]})
    if "sets" in changes:
        assert made.prediction_sets
        update["prediction_sets"] = made.prediction_sets.model_copy(update={"thresholds": changes["sets"]})
    found = limits.at_ends(made.model_copy(update=update), SETTINGS)
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))
