"""Whether probabilities mean what they say, before and after the temperature, and what the operating point gives."""

from dataclasses import astuple
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import softmax

from leukdetect.contract import Contract
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.metrics import Estimate, Number, Section, Share


class Scores(Section):
    """Calibration error in equal-mass bins, Brier score and negative log-likelihood."""

    ece: Estimate
    brier: Estimate
    nll: Estimate


class Calibration(Section):
    """The scores before and after the temperature."""

    temperature: Annotated[Number, Field(gt=0)]
    before: Scores
    after: Scores
    change: Scores


class PredictiveValues(Section):
    """The chance that a positive answer is right, and that a negative one is."""

    ppv: Estimate
    npv: Estimate


class OperatingPoint(PredictiveValues):
    """Malignant against benign, at a threshold and a prevalence.

    The bootstrap interval has no width where nothing was missed, and little with few groups: `wilson` has the
    predictive values with sensitivity and specificity both at the ends of their Wilson intervals.
    """

    sensitivity: Estimate
    specificity: Estimate
    wilson: PredictiveValues
    threshold: Share
    prevalence: Share


def uncalibrated(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """The probabilities [N, C] that the same logits have at temperature 1; it was one, or one an image: [N, 1].

    The logarithm of a softmax is its logits, but for a constant that the next softmax takes out again.
    """
    return np.asarray(softmax(temperature * np.log(np.maximum(probabilities, 1e-30)), axis=1))


def scores(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`Scores` of probabilities [N, C], in each resample: [R] each."""
    correct = probabilities.argmax(1) == labels
    return {
        "ece": metrics.ece(probabilities.max(1), correct, weights),
        "brier": metrics.mean(metrics.brier(probabilities, labels), weights),
        "nll": metrics.mean(metrics.nll(probabilities, labels), weights),
    }


def calibration(answers: Answers, temperature: float | np.ndarray, test: Sample, reported: float) -> Calibration:
    """Compares the answers with what the same logits gave before the temperature, one or [N, 1].

    `reported`: the model file's own temperature.
    """
    before, after = (
        scores(p, test.labels, test.weights)
        for p in (uncalibrated(answers.probabilities, temperature), answers.probabilities)
    )
    return Calibration(
        temperature=reported,
        before=Scores(**metrics.estimates(before)),
        after=Scores(**metrics.estimates(after)),
        change=Scores(**metrics.estimates({name: after[name] - before[name] for name in before})),
    )


def operating_point(
    answers: Answers, test: Sample, malignant: np.ndarray, contract: Contract, prevalence: float
) -> OperatingPoint | None:
    """As `at_threshold`; None where all classes are malignant, or none. `malignant`: bool [C]."""
    threshold = contract.thresholds.malignant
    if answers.malignant is None or threshold is None:
        return None
    return at_threshold(answers.malignant, malignant[test.labels], threshold, prevalence, test.weights)


def at_threshold(
    called: np.ndarray, is_malignant: np.ndarray, threshold: float, prevalence: float, weights: np.ndarray
) -> OperatingPoint:
    """Malignant against benign at the threshold; predictive values by Bayes at a prevalence, not the sample's.

    Args:
        called, is_malignant: bool [N], called malignant at the threshold, and the truth.
        prevalence: the share of malignant images where the model would be used.
    """

    def predictive(sensitivity: np.ndarray, specificity: np.ndarray) -> dict[str, np.ndarray]:
        """Both values grow with both arguments."""
        found, false = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
        cleared, missed = (1 - prevalence) * specificity, prevalence * (1 - sensitivity)
        return {"ppv": metrics.ratio(found, found + false), "npv": metrics.ratio(cleared, cleared + missed)}

    sensitivity = metrics.mean(called, weights * is_malignant)
    specificity = metrics.mean(~called, weights * ~is_malignant)
    by_wilson = predictive(
        *(
            np.array(astuple(metrics.wilson(int(right.sum()), len(right))))  # value, low, high
            for right in (called[is_malignant], ~called[~is_malignant])
        )
    )
    return OperatingPoint(
        sensitivity=metrics.estimate(sensitivity),
        specificity=metrics.estimate(specificity),
        **metrics.estimates(predictive(sensitivity, specificity)),
        wilson=PredictiveValues(**{name: Estimate(*three.tolist()) for name, three in by_wilson.items()}),
        threshold=threshold,
        prevalence=prevalence,
    )
