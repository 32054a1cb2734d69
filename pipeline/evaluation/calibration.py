"""Whether probabilities mean what they say, before and after the temperature, and what the operating point gives."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import softmax

from pipeline.evaluation import metrics
from pipeline.reporting import plots


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


def figure(probabilities: np.ndarray, temperature: float, labels: np.ndarray, measured: dict[str, Any]) -> Figure:
    """Accuracy against confidence in equal-mass bins, before and after the temperature."""
    drawn = plots.blank(8.6, 4.2, f"Calibration: temperature {temperature:.2f}")
    panels = drawn.subplots(1, 2, sharex=True, sharey=True)
    for axes, name, p in zip(
        panels, ("before", "after"), (uncalibrated(probabilities, temperature), probabilities), strict=True
    ):
        table = plots.reliability_table(p.max(1), p.argmax(1) == labels)
        ece = measured[name]["ece"]
        axes.plot([0, 1], [0, 1], color=plots.FAINT, linewidth=1, linestyle=":", label="Perfectly calibrated")
        axes.vlines(
            table["confidence"], table["confidence"], table["accuracy"], color=plots.ORANGE, linewidth=2, label="Gap"
        )
        about = f"About {table['images'].mean():.0f} images"
        axes.plot(table["confidence"], table["accuracy"], "o", color=plots.BLUE, markersize=5, label=about)
        axes.set_title(f"{name}: ECE {ece.value:.3f} [{ece.low:.3f}, {ece.high:.3f}]", fontsize=10)
        axes.set(xlim=(0.2, 1.02), ylim=(-0.02, 1.03), xlabel="Confidence (highest probability)")
        axes.grid(True)
    panels[0].set_ylabel("Accuracy")
    panels[0].legend(loc="lower right")
    return drawn


def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    whole = part + rest
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
