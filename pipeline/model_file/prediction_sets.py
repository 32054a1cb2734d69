"""Prediction sets: the classes that cannot be excluded, and how often the true one is among them.

Class-conditional (Mondrian) split conformal prediction (Vovk, Gammerman and Shafer 2005, chapter 4.5; Sadinle, Lei and
Wasserman 2019, JASA 114:223). If a class's images to come are exchangeable with its n validation images, the set lacks
the true class in at most `error` of them. They are not quite: validation images come in groups (patients, sessions),
and those to come are of others. So the coverage is measured, per class, on other groups.
"""

from typing import Any

import numpy as np

from leukdetect.contract import Contract, PredictionSets
from pipeline.evaluation import metrics


def fit(probabilities: np.ndarray, labels: np.ndarray, error: float) -> PredictionSets:
    """Thresholds from validation answers [n, C] and classes [n]: each class's k-th lowest own probability.

    With k = ⌊error · (n + 1)⌋ a new image of the class lies below it with a probability of k ÷ (n + 1) at most. Where
    that is 0, there are too few images to exclude the class at all.
    """
    thresholds, images = [], []
    for index in range(probabilities.shape[1]):
        own = np.sort(probabilities[labels == index, index].astype(np.float64))
        k = int(error * (len(own) + 1) + 1e-9)
        thresholds.append(np.floor(own[k - 1] * 1e6) / 1e6 if k else 0.0)  # six digits, and never above the answer
        images.append(len(own))
    return PredictionSets(error=error, thresholds=thresholds, images=images)


def members(probabilities: np.ndarray, sets: PredictionSets) -> np.ndarray:
    """Bool [N, C]: which classes cannot be excluded, as `leukdetect.decision` says; the highest never is."""
    inside: np.ndarray = probabilities >= np.array(sets.thresholds)
    inside[np.arange(len(inside)), probabilities.argmax(1)] = True
    return inside


def coverage(probabilities: np.ndarray, labels: np.ndarray, contract: Contract, weights: np.ndarray) -> dict[str, Any]:
    """Share of images whose set holds the true class, over all and per class, and how large the sets are.

    Args:
        probabilities, labels: [N, C] and [N], of held-out groups.
        weights: [R, N], of `metrics.group_weights`.
    """
    sets = contract.prediction_sets
    assert sets is not None, "pipeline.export writes version 2, which has them"
    inside = members(probabilities, sets)
    holds = inside[np.arange(len(labels)), labels]
    return {
        "aim": 1 - sets.error,
        "coverage": metrics.estimate(metrics.mean(holds, weights)),
        "per_class": {
            each.key: metrics.estimate(metrics.mean(holds, weights * (labels == index)))
            for index, each in enumerate(contract.classes)
        },
        "size": metrics.estimate(metrics.mean(inside.sum(1), weights)),
        "single": metrics.estimate(metrics.mean(inside.sum(1) == 1, weights)),
    }
