"""Whether probabilities mean what they say, before and after the temperature, and what the operating point gives."""

from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import softmax

from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.metrics import Estimate, Number, Section, Share


class Scores(Section):
    """Calibration error in equal-mass bins, Brier score and negative log-likelihood."""

    ece: Estimate
    brier: Estimate
    nll: Estimate


class Calibration(Section):
    """Before and after the temperature."""

    temperature: Annotated[Number, Field(gt=0)]
    before: Scores
    after: Scores
    change: Scores


class PredictiveValues(Section):
    """What a positive and a negative answer are worth."""

    ppv: Estimate
    npv: Estimate


class OperatingPoint(PredictiveValues):
    """Malignant against benign, at a threshold and a prevalence.

    The bootstrap has no width where nothing was missed, and little with few groups: `wilson` has the predictive values
    with sensitivity and specificity both at the ends of their Wilson intervals.
    """

    sensitivity: Estimate
    specificity: Estimate
    wilson: PredictiveValues
    threshold: Share
    prevalence: Share


def uncalibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities [N, C] of the same logits at temperature 1: a softmax keeps them, but for a constant."""
    scaled: np.ndarray = softmax(temperature * np.log(np.maximum(probabilities, 1e-30)), axis=1)
    return scaled


def calibration(answers: Answers, temperature: float, test: Sample) -> Calibration:
    """Of calibrated answers, and of what the same logits gave before the temperature."""

    def values(p: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "ece": metrics.ece(p.max(1), p.argmax(1) == test.labels, test.weights),
            "brier": metrics.mean(metrics.brier(p, test.labels), test.weights),
            "nll": metrics.mean(metrics.nll(p, test.labels), test.weights),
        }

    def scores(found: dict[str, np.ndarray]) -> Scores:
        return Scores(**{name: metrics.estimate(each) for name, each in found.items()})

    before, after = values(uncalibrated(answers.probabilities, temperature)), values(answers.probabilities)
    return Calibration(
        temperature=temperature,
        before=scores(before),
        after=scores(after),
        change=scores({name: after[name] - before[name] for name in before}),
    )


def operating_point(
    called: np.ndarray, is_malignant: np.ndarray, threshold: float, prevalence: float, weights: np.ndarray
) -> OperatingPoint:
    """Malignant against benign at the threshold; predictive values by Bayes at a prevalence, not the test split's.

    Args:
        called, is_malignant: bool [N], called malignant at the threshold, and the truth.
        prevalence: the share of malignant images where the model would be used.
    """
    sensitivity = metrics.mean(called, weights * is_malignant)
    specificity = metrics.mean(~called, weights * ~is_malignant)
    found, cleared = (_ends(flags) for flags in (called[is_malignant], ~called[~is_malignant]))
    wilson = {name: Estimate(*three.tolist()) for name, three in _predictive(found, cleared, prevalence).items()}
    values = {"sensitivity": sensitivity, "specificity": specificity} | _predictive(
        sensitivity, specificity, prevalence
    )
    return OperatingPoint(
        **{name: metrics.estimate(value) for name, value in values.items()},
        wilson=PredictiveValues(**wilson),
        threshold=threshold,
        prevalence=prevalence,
    )


def _ends(flags: np.ndarray) -> np.ndarray:
    """A share of flags [n], and both ends of its Wilson interval: [3]."""
    share = metrics.wilson(int(flags.sum()), len(flags))
    return np.array([share.value, share.low, share.high])


def _predictive(sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float) -> dict[str, np.ndarray]:
    """Positive and negative predictive values by Bayes's theorem; both grow with both arguments."""
    right, false = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    clear, missed = (1 - prevalence) * specificity, prevalence * (1 - sensitivity)
    return {"ppv": _share(right, false), "npv": _share(clear, missed)}


def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    whole = part + rest
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
