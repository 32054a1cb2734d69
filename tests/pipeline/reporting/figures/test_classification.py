"""Mistakes, drawn."""

import numpy as np

from pipeline.reporting.figures.classification import mistakes


def test_the_mistakes_shown_are_the_most_confident_ones() -> None:
    labels, predicted = np.zeros(40, int), np.ones(40, int)
    confidence = np.linspace(0.5, 0.99, 40)
    figure = mistakes(np.zeros((40, 8, 8, 3), np.uint8), labels, predicted, confidence, ["A", "B"])
    shown = [axes.get_xlabel() for axes in figure.axes]
    assert shown == [f"A\n→ B, {value:.2f}" for value in confidence[::-1][:12]]


def test_without_mistakes_the_figure_says_so() -> None:
    figure = mistakes(np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, int), np.zeros(3, int), np.ones(3), ["A"])
    assert "All 3 images were classified correctly." in [text.get_text() for text in figure.texts]
