"""Calibration, drawn: accuracy against confidence in equal-mass bins; within `style.STYLE`."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation.calibration import Calibration, uncalibrated
from pipeline.evaluation.metrics import Estimate
from pipeline.reporting.figures.style import BLUE, FAINT, ORANGE, RED, SKY, blank, legend
from pipeline.reporting.tables import reliability_table

CONFIDENCE = "Confidence (highest probability)"


def reliability(confidence: np.ndarray, correct: np.ndarray, ece: Estimate) -> Figure:
    """Below, how many images have which confidence."""
    figure = blank(5.8, 7.0, f"Reliability: ECE {ece}")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    table = reliability_table(confidence, correct)
    fewest, most = table["images"].min(), table["images"].max()
    _bins(above, table, f"Bin of {fewest if fewest == most else f'{fewest} to {most}'} images", 6)
    start = np.floor(min(confidence.min(), table["accuracy"].min()) * 10) / 10
    above.set(xlim=(start, 1.01), ylim=(start - 0.02, 1.02), ylabel="Accuracy")

    apart = [confidence[correct], confidence[~correct]]
    below.hist(apart, np.linspace(start, 1, 21).tolist(), color=[SKY, RED], label=["right", "wrong"])
    below.set_yscale("symlog", linthresh=1)  # the few that are wrong, beside hundreds
    below.set(xlabel=CONFIDENCE, ylabel="Images", yticks=[0, 1, 10, 100], yticklabels=[0, 1, 10, 100])
    below.grid(True, axis="y")
    legend(figure, above, below, ncols=3)
    return figure


def temperature(probabilities: np.ndarray, labels: np.ndarray, measured: Calibration) -> Figure:
    """Before and after the temperature."""
    figure = blank(8.6, 4.5, f"Calibration: temperature {measured.temperature:.2f}")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    before = uncalibrated(probabilities, measured.temperature)
    for axes, name, p, scores in (
        (panels[0], "before", before, measured.before),
        (panels[1], "after", probabilities, measured.after),
    ):
        table = reliability_table(p.max(1), p.argmax(1) == labels)
        _bins(axes, table, f"About {table['images'].mean():.0f} images", 5)
        axes.set_title(f"{name}: ECE {scores.ece}", fontsize=10)
        axes.set(xlim=(0.2, 1.02), ylim=(-0.02, 1.03), xlabel=CONFIDENCE)
    panels[0].set_ylabel("Accuracy")
    legend(figure, panels[0], ncols=3)
    return figure


def _bins(axes: Axes, table: pd.DataFrame, label: str, size: float) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="Perfectly calibrated")
    axes.vlines(table["confidence"], table["confidence"], table["accuracy"], color=ORANGE, linewidth=2, label="Gap")
    axes.plot(table["confidence"], table["accuracy"], "o", color=BLUE, markersize=size, label=label)
    axes.grid(True)
