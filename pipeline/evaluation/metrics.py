"""A classifier's metrics with 95 % intervals: pure functions on arrays.

Every metric takes `weights` [R, N]: R resamples of the same N images, each row saying how often an image
was drawn. Row 0 of `group_weights` is the sample as it is, so one call gives the value and its bootstrap
distribution, and `estimate` makes an interval of them. 0 ÷ 0 is 0 throughout (scikit-learn's
`zero_division=0`), as in the precision of a class that was never predicted.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Generic, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator
from pydantic.dataclasses import dataclass
from scipy.stats import binomtest

BINS = 15  # of confidence, for the calibration error; Guo et al. 2017 and most of the field since

_CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Number = Annotated[float, PlainSerializer(lambda value: round(value, 6) + 0.0)]  # + 0.0: no negative zero
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of reports/metrics.json, where numbers have six decimals."""

    model_config = ConfigDict(frozen=True, **_CHECKED)


Each = TypeVar("Each", bound=Section)


class Both(Section, Generic[Each]):
    """A section for both model files."""

    fp32: Each
    int8: Each


@dataclass(frozen=True, config=_CHECKED)
class Estimate:
    """A value measured on held-out images, in a 95 % interval."""

    value: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        """`0.934 [0.902, 0.961]`, rounded from the six decimals that JSON holds."""
        value, low, high = (round(each, 6) for each in (self.value, self.low, self.high))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    def of_further(self, times: float) -> "Estimate":
        """Of a share: where it would lie in 95 % of further samples with 1/`times` as many groups.

        Their own variance is `times` that of the estimate, and is added to it: an interval of a mean says nothing of
        the next few sessions.
        """
        wider = (1 + times) ** 0.5
        low, high = self.value - wider * (self.value - self.low), self.value + wider * (self.high - self.value)
        return Estimate(self.value, max(0.0, low), min(1.0, high))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is not within {self.low} to {self.high}")
        return self


@dataclass(frozen=True, config=_CHECKED)
class McNemar:
    """Two classifiers on the same images: how often only one of them was right, and the exact two-sided p."""

    only_a: Count
    only_b: Count
    p: Share


def group_weights(labels: np.ndarray, groups: Sequence[Hashable] | np.ndarray, n: int, seed: int) -> np.ndarray:
    """Resamples groups of images (patients, blocks) with replacement, within each class.

    Images of one group share a patient, a stain and a session, so they are drawn together: intervals over
    single images would be far too narrow. Stratified, so that no resample lacks a class: groups that hold
    the same class (or the same set of classes) are one stratum, and each stratum keeps its number of groups.
    A stratum of one group does not vary at all, so with few groups a class the interval is too narrow.
    Which groups are drawn depends on their names and the seed, not on their order.

    Returns:
        float64 [1 + n, N]: how often each image was drawn. Row 0 is all ones.
    """
    if not len(labels) == len(groups) > 0:
        raise ValueError(f"{len(labels)} labels and {len(groups)} groups: there must be one group an image, and images")
    group_of = np.unique([repr(group) for group in groups], return_inverse=True)[1]
    holds = np.zeros((group_of.max() + 1, len(np.unique(labels))), bool)
    holds[group_of, np.unique(labels, return_inverse=True)[1]] = True
    strata = np.unique(holds, axis=0, return_inverse=True)[1].ravel()

    rng = np.random.default_rng(seed)
    draws = np.ones((1 + n, len(holds)))
    for stratum in range(strata.max() + 1):
        members = np.flatnonzero(strata == stratum)
        draws[1:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n)
    return draws[:, group_of]


def estimate(values: np.ndarray) -> Estimate:
    """Percentile interval of [1 + n] values, the sample's own first; widened, where need be, to hold that one.

    Resampling biases some metrics: the ECE can only look worse.
    """
    value, (low, high) = values[0], np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def estimates(values: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """As `estimate`, by name."""
    return {name: estimate(each) for name, each in values.items()}


def estimate_mean(values: np.ndarray, weights: np.ndarray) -> Estimate:
    """The `mean` of [N] values, or the share of [N] flags, with its interval."""
    return estimate(mean(values, weights))


def paired_bootstrap(labels: np.ndarray, a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> Estimate:
    """By how much A's balanced accuracy exceeds B's, from both models' predictions of the same images, [N] each.

    Paired: each resample of groups scores A and B on the same images, so that what makes an image hard for both
    cancels out. If `high` is below zero, A is worse by more than chance explains.
    """
    if not len(labels) == len(a) == len(b):
        raise ValueError(f"{len(labels)} labels, {len(a)} and {len(b)} predictions: must be equal")
    return estimate(balanced_accuracy(labels, a, weights) - balanced_accuracy(labels, b, weights))


def wilson(hits: int, n: int) -> Estimate:
    """A proportion with Wilson's 95 % interval (1927), which has a width at 0 and 1 too; 0 of 0 may be anything.

    Wilson takes images as independent, which images of one patient are not. Read it beside the bootstrap, which draws
    whole groups but gives no width where every group is right.
    """
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high))


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> McNemar:
    """McNemar's exact test (1947) of two classifiers that answered for the same images, bool [N] each.

    Only images on which one is right and the other wrong count; were the two equally good, each would be right on half
    of them. The test takes images as independent: with few groups the paired bootstrap is stricter.
    """
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, float(p))


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of [N] values in each resample: [R].

    `weights * subset` gives the mean within a subset: sensitivity is the mean of "called malignant" among the
    malignant.
    """
    return ratio(weights @ values, weights.sum(1))


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur in `labels` [N]: [R]."""
    is_class = labels[:, None] == np.unique(labels)
    correct = is_class & (labels == predictions)[:, None]
    return ratio(weights @ correct, weights @ is_class).mean(1)


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Counts [R, classes, classes]; rows are the actual class, columns the predicted, both [N] of 0..classes-1."""
    cell = np.eye(classes * classes)[labels * classes + predictions]
    return (weights @ cell).reshape(-1, classes, classes)


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class, from confusion [R, C, C]: [R, C] each."""
    right, actual, predicted = np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(2), matrix.sum(1)
    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, actual),
        "f1": ratio(2 * right, actual + predicted),
    }


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a positive image [N] scores above a negative one, ties counting half (Mann-Whitney U): [R]."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where each run of equal scores starts
    drawn = weights[:, order]
    positives = np.add.reduceat(drawn * positive[order], ties, axis=1)
    negatives = np.add.reduceat(drawn * ~positive[order], ties, axis=1)
    below = negatives.cumsum(1) - negatives / 2
    return ratio((positives * below).sum(1), positives.sum(1) * negatives.sum(1))


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin number, 0..BINS-1, of each of [N] confidences; bins hold about equally many, equal confidences share one."""
    edges = np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, confidence, side="right")


def ece(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error: |mean confidence - accuracy| in equal-mass bins, weighted by their mass: [R].

    Naeini et al. 2015 (ECE), Nguyen & O'Connor 2015 (equal mass). `confidence` [N] is each image's highest probability,
    `correct` [N] whether that class is right. Resamples keep the bins of the whole sample.
    """
    in_bin = np.eye(BINS)[confidence_bins(confidence)]
    gaps = weights @ (in_bin * (confidence - correct)[:, None])
    return ratio(np.abs(gaps).sum(1), weights.sum(1))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared distance of each image's probabilities [N, C] from the truth, 0..2 (Brier 1950): [N]."""
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1)


def nll(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each image's actual class, in nats: [N]. A probability of 0 counts as 1e-7."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-7))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient of two arrays; 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)
