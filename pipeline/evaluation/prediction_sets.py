"""How often the set of classes that cannot be excluded holds the true one, measured on held-out groups."""

from typing import Any

import numpy as np

from leukdetect.contract import Contract, PredictionSets
from pipeline.evaluation import metrics


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
