"""Mistakes and reliability, drawn."""

from pathlib import Path

import matplotlib
import numpy as np

from pipeline.evaluation.metrics import Estimate
from pipeline.reporting.figures.classification import mistakes, reliability
from pipeline.reporting.figures.style import STYLE, save


def test_the_mistakes_shown_are_the_most_confident_ones() -> None:
    labels, predicted = np.zeros(40, int), np.ones(40, int)
    confidence = np.linspace(0.5, 0.99, 40)
    figure = mistakes(np.zeros((40, 8, 8, 3), np.uint8), labels, predicted, confidence, ["A", "B"])
    shown = [axes.get_xlabel() for axes in figure.axes]
    assert shown == [f"A\n→ B, {value:.2f}" for value in confidence[::-1][:12]]


def test_without_mistakes_the_figure_says_so() -> None:
    figure = mistakes(np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, int), np.zeros(3, int), np.ones(3), ["A"])
    assert "All 3 images were classified correctly." in [text.get_text() for text in figure.texts]


def test_a_perfectly_confident_and_right_model_can_be_drawn(tmp_path: Path) -> None:
    certain = Estimate(0, 0, 0)
    with matplotlib.rc_context(STYLE):
        figure = reliability(np.ones(20), np.ones(20, bool), certain)
        save(figure, tmp_path / "reliability.png", "n = 20", synthetic=False)
    assert (tmp_path / "reliability.png").stat().st_size > 0
