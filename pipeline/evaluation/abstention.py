"""Whether the model declines where it should: risk–coverage, false referrals, and images that are no smears.

The decisions are the server's own (`leukdetect.decision`), from the same thresholds in the model file.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from leukdetect.decision import ReasonCode
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers

# What an image is referred for, in the order in which each check is asked what it adds to those before.
CHECKS: dict[str, set[ReasonCode]] = {
    "unlikeness": {"unlike_training_images"},
    "quality": {"too_dark", "too_bright", "blurred", "no_stained_nucleus"},
    "scores": {"low_confidence", "malignant_not_excluded", "malignant_not_confirmed"},
}


def risk_coverage(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the risk–coverage curve (AURC; Geifman and El-Yaniv 2017): [R]; 0 is best.

    The mean, over coverages, of the share of wrong answers among the most confident ones. Images of equal confidence
    share their risk.
    """
    _, ties = np.unique(-confidence, return_inverse=True)
    drawn, wrong = (np.zeros((len(weights), ties.max() + 1)) for _ in range(2))
    for column in range(ties.max() + 1):
        here = ties == column
        drawn[:, column], wrong[:, column] = weights[:, here].sum(1), (weights[:, here] * ~correct[here]).sum(1)
    covered = drawn.cumsum(1)
    risk = np.divide(wrong.cumsum(1), covered, out=np.zeros_like(covered), where=covered > 0)
    area: np.ndarray = (risk * drawn).sum(1) / drawn.sum(1)
    return area


def measure(
    answers: Answers, labels: np.ndarray, weights: np.ndarray, foreign: Mapping[str, Answers]
) -> dict[str, Any]:
    """How a model file abstains on held-out smears, and on each kind of foreign images.

    A false referral is that of a held-out smear whose class would have been right. AUROC: the chance that a foreign
    image's unlikeness is above a smear's. Intervals resample the smears' groups and the foreign images one by one.
    """
    correct = answers.predicted == labels
    return {
        "false_referrals": metrics.estimate(metrics.mean(~answers.reported & correct, weights)),
        **_referrals(answers, weights),
        "risk": metrics.estimate(metrics.mean(~correct, weights)),
        "risk_reported": metrics.estimate(metrics.mean(~correct, weights * answers.reported)),
        "aurc": metrics.estimate(risk_coverage(answers.confidence, correct, weights)),
        "foreign": {name: _of_kind(theirs, answers.unlikeness, weights) for name, theirs in foreign.items()},
    }


def _of_kind(theirs: Answers, unlikeness: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    n = len(theirs.unlikeness)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), len(weights) - 1)
    own = np.concatenate([np.ones((1, n)), draws])
    scores = np.concatenate([unlikeness, theirs.unlikeness])
    area = metrics.auroc(scores, np.arange(len(scores)) >= len(unlikeness), np.concatenate([weights, own], axis=1))
    return {"images": n, "auroc": metrics.estimate(area), **_referrals(theirs, own)}


def _referrals(answers: Answers, weights: np.ndarray) -> dict[str, Any]:
    """The share that is referred: in all, for each reason, and what each of `CHECKS` adds to those before it."""

    def share(flags: np.ndarray) -> metrics.Estimate:
        return metrics.estimate(metrics.mean(flags, weights))

    codes = answers.reasons
    left, adds = np.ones(len(codes), bool), {}
    for check, reasons in CHECKS.items():
        caught = np.array([bool(reasons & each) for each in codes])
        adds[check] = share(caught & left)
        left &= ~caught
    return {
        "referred": share(~left),
        "referred_for": {
            code: share(np.array([code in each for each in codes])) for code in sorted(set().union(*codes))
        },
        "added_by": adds,
    }
