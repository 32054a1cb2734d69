"""Whether the model declines where it should: risk–coverage, false referrals, and images that are no smears.

The decisions are the server's own (`leukdetect.decision`), from the same thresholds in the model file.
"""

from collections.abc import Mapping

import numpy as np

from leukdetect.decision import ReasonCode
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers, Images, Sample, answer
from pipeline.evaluation.metrics import Count, Estimate, Section
from pipeline.model_file.onnx_model import OnnxModel

# What an image is referred for, in the order in which each check is asked what it adds to those before.
CHECKS: dict[str, set[ReasonCode]] = {
    "unlikeness": {"unlike_training_images"},
    "quality": {"too_dark", "too_bright", "blurred", "no_stained_nucleus"},
    "scores": {"low_confidence", "malignant_not_excluded", "malignant_not_confirmed"},
}


class AddedBy(Section):
    """The share that each of `CHECKS` refers and none before it does."""

    unlikeness: Estimate
    quality: Estimate
    scores: Estimate


class Referrals(Section):
    """The share that is referred: in all, for each reason, and by each check."""

    referred: Estimate
    referred_for: dict[ReasonCode, Estimate]
    added_by: AddedBy


class Foreign(Referrals):
    """Images of one kind that are no such smears. AUROC: the chance that one is more unlike than a smear is."""

    images: Count
    auroc: Estimate


class Abstention(Referrals):
    """How one model file declines. A false referral is that of a smear whose class would have been right."""

    false_referrals: Estimate
    risk: Estimate
    risk_reported: Estimate
    aurc: Estimate
    foreign: dict[str, Foreign]


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


def measure(model: OnnxModel, answers: Answers, test: Sample, foreign: Mapping[str, Images]) -> Abstention:
    """Of a model file that has answered for the test split, and is asked about each kind of foreign images.

    Intervals resample the smears' groups and the foreign images one by one.
    """
    weights, correct = test.weights, answers.predicted == test.labels
    return Abstention(
        false_referrals=metrics.estimate(metrics.mean(~answers.reported & correct, weights)),
        risk=metrics.estimate(metrics.mean(~correct, weights)),
        risk_reported=metrics.estimate(metrics.mean(~correct, weights * answers.reported)),
        aurc=metrics.estimate(risk_coverage(answers.confidence, correct, weights)),
        foreign={name: _of_kind(answer(model, each), answers.unlikeness, weights) for name, each in foreign.items()},
        **dict(_referrals(answers, weights)),
    )


def _of_kind(theirs: Answers, unlikeness: np.ndarray, weights: np.ndarray) -> Foreign:
    n = len(theirs.unlikeness)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), len(weights) - 1)
    own = np.concatenate([np.ones((1, n)), draws])
    scores = np.concatenate([unlikeness, theirs.unlikeness])
    area = metrics.auroc(scores, np.arange(len(scores)) >= len(unlikeness), np.concatenate([weights, own], axis=1))
    return Foreign(images=n, auroc=metrics.estimate(area), **dict(_referrals(theirs, own)))


def _referrals(answers: Answers, weights: np.ndarray) -> Referrals:
    def share(flags: np.ndarray) -> Estimate:
        return metrics.estimate(metrics.mean(flags, weights))

    codes, left, adds = answers.reasons, np.ones(len(answers.reasons), bool), {}
    for check, reasons in CHECKS.items():
        caught = np.array([bool(reasons & each) for each in codes])
        adds[check] = share(caught & left)
        left &= ~caught
    return Referrals(
        referred=share(~left),
        referred_for={code: share(np.array([code in each for each in codes])) for code in set().union(*codes)},
        added_by=AddedBy(**adds),
    )
