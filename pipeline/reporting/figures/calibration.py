"""Calibration, drawn."""

import numpy as np
from matplotlib.figure import Figure

from pipeline.evaluation.calibration import Calibration, uncalibrated
from pipeline.reporting.figures.style import BLUE, FAINT, ORANGE, blank
from pipeline.reporting.tables import reliability_table


def figure(probabilities: np.ndarray, labels: np.ndarray, measured: Calibration) -> Figure:
    """Accuracy against confidence in equal-mass bins, before and after the temperature."""
    drawn = blank(8.6, 4.2, f"Calibration: temperature {measured.temperature:.2f}")
    panels = drawn.subplots(1, 2, sharex=True, sharey=True)
    before = uncalibrated(probabilities, measured.temperature)
    for axes, name, p, scores in (
        (panels[0], "before", before, measured.before),
        (panels[1], "after", probabilities, measured.after),
    ):
        table = reliability_table(p.max(1), p.argmax(1) == labels)
        ece = scores.ece
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="Perfectly calibrated")
        axes.vlines(table["confidence"], table["confidence"], table["accuracy"], color=ORANGE, linewidth=2, label="Gap")
        about = f"About {table['images'].mean():.0f} images"
        axes.plot(table["confidence"], table["accuracy"], "o", color=BLUE, markersize=5, label=about)
        axes.set_title(f"{name}: ECE {ece.value:.3f} [{ece.low:.3f}, {ece.high:.3f}]", fontsize=10)
        axes.set(xlim=(0.2, 1.02), ylim=(-0.02, 1.03), xlabel="Confidence (highest probability)")
        axes.grid(True)
    panels[0].set_ylabel("Accuracy")
    panels[0].legend(loc="lower right")
    return drawn
