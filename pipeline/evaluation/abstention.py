"""Whether the model declines where it should: risk–coverage, false referrals, and images that are no smears.

Decisions are made as the server makes them: `leukdetect.decision`, with the thresholds in the model file.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from leukdetect.decision import ReasonCode
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers, Sample, answer
from pipeline.evaluation.metrics import Count, Estimate, Section
from pipeline.evaluation.out_of_distribution import OTHER_LABORATORY
from pipeline.model_file.onnx_model import OnnxModel

# The reasons for a referral by check. The order matters: `AddedBy` counts what each check adds to those before it.
CHECKS: dict[str, set[ReasonCode]] = {
    "unlikeness": {"unlike_training_images"},
    "quality": {"too_dark", "too_bright", "blurred", "no_stained_nucleus"},
    "scores": {"low_confidence", "malignant_not_excluded", "malignant_not_confirmed"},
}


class AddedBy(Section):
    """The share of images that each check refers and no check before it does."""

    unlikeness: Estimate
    quality: Estimate
    scores: Estimate


class Referrals(Section):
    """The share of images that is referred: in all, for each reason, and by each check."""

    referred: Estimate
    referred_for: dict[ReasonCode, Estimate]
    added_by: AddedBy


class Foreign(Referrals):
    """One kind of images that are no smears. AUROC: the chance that one has a higher unlikeness than a smear."""

    images: Count
    auroc: Estimate


class Abstention(Referrals):
    """How one model file declines. A false referral: the smear is referred, though its class would have been right."""

    false_referrals: Estimate
    risk: Estimate
    risk_reported: Estimate
    aurc: Estimate
    foreign: dict[str, Foreign]

    def unlikeness_auroc(self) -> Estimate:
        """Of the kind that is told from smears worst: the lowest value, in an interval of the lowest ends."""
        found = [kind.auroc for name, kind in self.foreign.items() if name != OTHER_LABORATORY]
        return Estimate(min(e.value for e in found), min(e.low for e in found), min(e.high for e in found))


def risk_coverage(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the risk–coverage curve (AURC; Geifman and El-Yaniv 2017): [R]; 0 is best.

    The mean, over coverages, of the share of wrong answers among the most confident ones. Images of equal confidence
    share their risk.
    """
    order = np.argsort(-confidence, kind="stable")
    ties = np.flatnonzero(np.diff(confidence[order], prepend=np.inf))  # where each run of equal confidences starts
    drawn, wrong = (np.add.reduceat(each[:, order], ties, axis=1) for each in (weights, weights * ~correct))
    risk = metrics.ratio(wrong.cumsum(1), drawn.cumsum(1))
    return np.asarray((risk * drawn).sum(1) / drawn.sum(1))


def measure(model: OnnxModel, answers: Answers, test: Sample, foreign: Mapping[str, np.ndarray]) -> Abstention:
    """Measures a model file's answers to held-out images, and asks it about foreign images, uint8 [n, S, S, 3] a kind.

    Intervals resample the smears' groups and the foreign images one by one.
    """
    weights, correct = test.weights, answers.predicted == test.labels
    kinds = {}
    for name, pixels in foreign.items():
        theirs, n = answer(model, pixels), len(pixels)
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), len(weights) - 1)
        own = np.concatenate([np.ones((1, n)), draws])
        unlikeness = np.concatenate([answers.unlikeness, theirs.unlikeness])
        is_foreign = np.arange(len(unlikeness)) >= len(weights.T)
        area = metrics.auroc(unlikeness, is_foreign, np.concatenate([weights, own], axis=1))
        kinds[name] = Foreign(images=n, auroc=metrics.estimate(area), **_referrals(theirs, own))
    return Abstention(
        false_referrals=metrics.estimate_mean(~answers.reported & correct, weights),
        risk=metrics.estimate_mean(~correct, weights),
        risk_reported=metrics.estimate_mean(~correct, weights * answers.reported),
        aurc=metrics.estimate(risk_coverage(answers.confidence, correct, weights)),
        foreign=kinds,
        **_referrals(answers, weights),
    )


def _referrals(answers: Answers, weights: np.ndarray) -> dict[str, Any]:
    """The fields of `Referrals`."""
    codes, left, adds = answers.reasons, np.ones(len(answers.reasons), bool), {}
    for check, reasons in CHECKS.items():
        caught = np.array([bool(reasons & each) for each in codes])
        adds[check] = metrics.estimate_mean(caught & left, weights)
        left &= ~caught
    flags = {code: np.array([code in each for each in codes]) for code in set().union(*codes)}
    return {
        "referred": metrics.estimate_mean(~left, weights),
        "referred_for": {code: metrics.estimate_mean(flag, weights) for code, flag in flags.items()},
        "added_by": AddedBy(**adds),
    }
