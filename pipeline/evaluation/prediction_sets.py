"""How often the set of classes that cannot be excluded holds the true one, measured on held-out groups."""

from collections.abc import Sequence

import numpy as np

from leukdetect.contract import Class
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.metrics import Estimate, Section, Share


class Coverage(Section):
    """The share of images whose set holds the true class, in all and per class, and how large the sets are."""

    aim: Share
    coverage: Estimate
    per_class: dict[str, Estimate]
    size: Estimate
    single: Estimate


def members(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Bool [N, C]: the classes that `leukdetect.decision` does not exclude; the most likely one never is."""
    inside: np.ndarray = probabilities >= thresholds
    inside[np.arange(len(inside)), probabilities.argmax(1)] = True
    return inside


def coverage(
    answers: Answers, test: Sample, thresholds: np.ndarray, classes: Sequence[Class], error: float
) -> Coverage:
    """Measures the answers' sets, made by thresholds [C], or [N, C], that aim at `error`."""
    labels, weights = test.labels, test.weights
    inside = members(answers.probabilities, thresholds)
    holds, size = inside[np.arange(len(labels)), labels], inside.sum(1)
    return Coverage(
        aim=1 - error,
        coverage=metrics.estimate_mean(holds, weights),
        per_class={
            each.key: metrics.estimate_mean(holds, weights * (labels == index)) for index, each in enumerate(classes)
        },
        size=metrics.estimate_mean(size, weights),
        single=metrics.estimate_mean(size == 1, weights),
    )
