"""Reliability, drawn."""

from pathlib import Path

import matplotlib
import numpy as np

from pipeline.evaluation.metrics import Estimate
from pipeline.reporting.figures.calibration import reliability
from pipeline.reporting.figures.style import STYLE, save


def test_a_perfectly_confident_and_right_model_can_be_drawn(tmp_path: Path) -> None:
    certain = Estimate(0, 0, 0)
    with matplotlib.rc_context(STYLE):
        figure = reliability(np.ones(20), np.ones(20, bool), certain)
        save(figure, tmp_path / "reliability.png", "n = 20", synthetic=False)
    assert (tmp_path / "reliability.png").stat().st_size > 0
