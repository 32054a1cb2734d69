"""Calibration before and after, and predictive values."""

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.evaluation import calibration
from pipeline.evaluation.answers import Answers, Sample

ONE = np.ones((2, 4000))  # two resamples, each the sample itself


def test_the_probabilities_before_the_temperature_are_those_of_the_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (50, 4))
    before = calibration.uncalibrated(softmax(logits / 2.5, axis=1), 2.5)
    assert before == pytest.approx(softmax(logits, axis=1), abs=1e-9)


def test_calibration_says_what_the_temperature_gained() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits, axis=1)])
    # A model three times too sure of itself, and the temperature that mends it.
    nothing = np.empty(0)
    answers = Answers(softmax(logits, axis=1), nothing, nothing, nothing, nothing, nothing, [])
    found = calibration.calibration(answers, 3.0, Sample(nothing, labels, labels, ONE), 3.0)
    for name in ("ece", "brier", "nll"):
        before, after, change = (getattr(each, name).value for each in (found.before, found.after, found.change))
        assert after < before
        assert change == pytest.approx(after - before)
    assert found.after.ece.value < 0.03 < 0.1 < found.before.ece.value


def test_predictive_values_are_bayess_at_the_prevalence_that_is_stated() -> None:
    malignant = np.arange(4000) < 1000
    score = np.where(np.arange(4000) % 10 == 0, ~malignant, malignant).astype(float)  # 90 % right, on both sides
    found = calibration.at_threshold(score >= 0.5, malignant, 0.5, 0.01, ONE)
    assert found.sensitivity.value == found.specificity.value == pytest.approx(0.9)
    assert found.ppv.value == pytest.approx(0.009 / (0.009 + 0.099))
    assert found.npv.value == pytest.approx(0.891 / (0.891 + 0.001))


def test_nothing_missed_still_leaves_a_doubt_in_what_a_negative_answer_is_worth() -> None:
    malignant = np.arange(4000) < 60
    found = calibration.at_threshold(malignant, malignant, 0.5, 0.1, ONE)
    assert (found.npv.low, found.npv.high) == (1, 1)
    npv, z2 = found.wilson.npv, 1.959964**2
    sensitivity, specificity = (n / (n + z2) for n in (60, 3940))  # Wilson's lower end where all are right
    assert npv.value == npv.high == 1
    assert npv.low == pytest.approx(0.9 * specificity / (0.9 * specificity + 0.1 * (1 - sensitivity)))
    ppv = found.wilson.ppv.low
    assert ppv == pytest.approx(0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity)))
