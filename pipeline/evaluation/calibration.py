"""Whether probabilities mean what they say, before and after the temperature, and what the operating point gives."""

from typing import Any

import numpy as np
from scipy.special import softmax

from pipeline.evaluation import metrics


def uncalibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities [N, C] of the same logits at temperature 1: a softmax keeps them, but for a constant."""
    scaled: np.ndarray = softmax(temperature * np.log(np.maximum(probabilities, 1e-30)), axis=1)
    return scaled


def calibration(
    probabilities: np.ndarray, temperature: float, labels: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """ECE (equal-mass bins), Brier and NLL of calibrated probabilities [N, C], and of those before the temperature."""

    def of(p: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "ece": metrics.ece(p.max(1), p.argmax(1) == labels, weights),
            "brier": metrics.mean(metrics.brier(p, labels), weights),
            "nll": metrics.mean(metrics.nll(p, labels), weights),
        }

    before, after = of(uncalibrated(probabilities, temperature)), of(probabilities)
    return {
        "temperature": temperature,
        "before": {name: metrics.estimate(values) for name, values in before.items()},
        "after": {name: metrics.estimate(values) for name, values in after.items()},
        "change": {name: metrics.estimate(after[name] - before[name]) for name in before},
    }


def operating_point(
    p_malignant: np.ndarray, is_malignant: np.ndarray, threshold: float, prevalence: float, weights: np.ndarray
) -> dict[str, Any]:
    """Malignant against benign at the threshold; predictive values by Bayes at a prevalence, not the test split's.

    Args:
        p_malignant, is_malignant: [N], the score and the truth (bool).
        prevalence: the share of malignant images where the model would be used.

    Returns:
        Intervals by bootstrap, and under `wilson` the predictive values with sensitivity and specificity both at the
        ends of their Wilson intervals: the bootstrap has no width where nothing was missed, and little with few groups.
    """
    called = p_malignant >= threshold
    sensitivity = metrics.mean(called, weights * is_malignant)
    specificity = metrics.mean(~called, weights * ~is_malignant)
    values = {"sensitivity": sensitivity, "specificity": specificity}
    values |= _predictive(sensitivity, specificity, prevalence)
    found, cleared = (_ends(flags) for flags in (called[is_malignant], ~called[~is_malignant]))
    wilson = _predictive(found, cleared, prevalence)
    return {name: metrics.estimate(value) for name, value in values.items()} | {
        "wilson": {name: metrics.Estimate(*three.tolist()) for name, three in wilson.items()},
        "threshold": threshold,
        "prevalence": prevalence,
    }


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
