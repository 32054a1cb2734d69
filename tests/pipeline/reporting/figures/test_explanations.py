"""Overlays of the maps."""

import matplotlib
import numpy as np

from pipeline.evaluation.answers import Maps
from pipeline.reporting.figures.explanations import overlays
from pipeline.reporting.figures.style import STYLE


def test_overlays_name_the_class_and_what_the_model_made_of_it() -> None:
    grid = np.ones((3, 2, 2), np.float32)
    grid[2] = 0
    seen = Maps(np.array([0, 1, 1]), grid, np.zeros((3, 8, 8, 3), np.uint8))
    with matplotlib.rc_context(STYLE):
        figure = overlays(seen, np.array([0, 0, 1]), ["Benign", "Pro-B"], None)
    labels = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert figure.axes[-1].get_ylabel() == "Share of the map's highest"  # the colour bar
    assert labels == ["Benign\n→ Benign", "Benign\n→ Pro-B", "Pro-B\n→ Pro-B, empty map"]
