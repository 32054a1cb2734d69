"""Prediction sets: their coverage by the theorem, class by class, and its limits."""

import numpy as np
import pytest
from scipy.special import softmax

from leukdetect.contract import PredictionSets
from pipeline.evaluation.prediction_sets import members
from pipeline.model_file import prediction_sets


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A model that is good at class 0 and poor at class 2, and its images."""
    labels = rng.integers(0, 3, n)
    return softmax(rng.normal(0, 1, (n, 3)) + np.eye(3)[labels] * np.array([4, 2, 0.5]), axis=1), labels


def test_each_class_is_covered_as_often_as_was_asked_for_the_hard_one_too() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):  # the promise is of the mean over validation splits
        sets = prediction_sets.fit(*draw(rng, 150), error=0.1)
        probabilities, labels = draw(rng, 600)
        holds = members(probabilities, np.array(sets.thresholds))[np.arange(600), labels]
        held.append([holds[labels == c].mean() for c in range(3)])
    by_class = np.mean(held, axis=0)
    assert (by_class >= 0.89).all()
    assert by_class[2] < 0.93  # and not by putting everything in


def test_a_class_of_too_few_validation_images_is_never_excluded() -> None:
    probabilities, labels = draw(np.random.default_rng(0), 40)
    sets = prediction_sets.fit(probabilities, labels, error=0.05)
    assert sum(sets.images) == 40
    assert sets.thresholds == [0, 0, 0]  # 19 images are needed to leave one out of 20


def test_the_set_has_the_highest_class_even_where_none_reaches_its_threshold() -> None:
    sets = PredictionSets(error=0.1, thresholds=[0.9, 0.9, 0.9], images=[50, 50, 50])
    assert members(np.array([[0.5, 0.3, 0.2]]), np.array(sets.thresholds)).tolist() == [[True, False, False]]


@pytest.mark.parametrize("n", [19, 39, 200])
def test_a_threshold_never_excludes_the_image_that_set_it(n: int) -> None:
    own = np.random.default_rng(n).random((n, 1)).astype(np.float32)
    sets = prediction_sets.fit(own, np.zeros(n, int), error=0.05)
    assert (own[:, 0] < sets.thresholds[0]).mean() <= 0.05
