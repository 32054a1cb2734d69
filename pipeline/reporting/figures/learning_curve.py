"""The learning curve over grouped folds, drawn."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.reporting.figures.style import BLUE, FAINT, ORANGE, SKY, blank


def sample(found: dict[str, Any]) -> str:
    """What was measured, for below the figure's title."""
    images, groups = (list(found["by_share"].values())[-1][name] for name in ("images", "groups"))
    return f"Each held out once, n = {images} images in {groups} groups; every point trained anew"


def figure(found: dict[str, Any]) -> Figure:
    """Balanced accuracy over training images, of what `pipeline.cross_validate` wrote."""
    points = list(found["by_share"].values())
    trained = [point["trained_on"] for point in points]
    drawn = blank(7, 4.4, f"Learning curve over {found['folds']} grouped folds")
    axes = drawn.subplots()
    for name, title, colour, marker in (
        ("colour_only", "colour only, 95 % over groups", ORANGE, "s"),
        ("balanced_accuracy", "the recipe, 95 % over groups", BLUE, "o"),
    ):
        values, low, high = (np.array([point[name][end] for point in points]) for end in ("value", "low", "high"))
        bars = np.stack([values - low, high - values])
        axes.errorbar(trained, values, bars, color=colour, marker=marker, capsize=4, label=title)
    for point in points:
        # A little to the right of the interval, so that neither hides the other.
        beside = [point["trained_on"] + 0.02 * max(trained)] * len(point["each_fold"])
        axes.plot(beside, point["each_fold"], ".", color=SKY, label="one fold" if point is points[0] else None)
    chance = 1 / sum(name.startswith("recall_") for name in points[0])
    axes.axhline(chance, color=FAINT, linestyle=":", linewidth=1, label="chance")
    axes.set(xlim=(0, 1.08 * max(trained)), ylim=(0, 1.02))
    axes.set(xlabel="Training images (mean over folds)", ylabel="Balanced accuracy, held-out folds")
    axes.grid(True)
    axes.legend(loc="lower right", reverse=True)  # the recipe first
    return drawn
