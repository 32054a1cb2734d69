"""What stands above every figure."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from pipeline.reporting.datasheet import SYNTHETIC
from pipeline.reporting.figures.classification import confusion_matrix
from pipeline.reporting.figures.style import STYLE, save

LABELS = np.repeat([0, 1], 5)


def test_a_synthetic_run_is_stamped_and_a_real_one_is_not(tmp_path: Path) -> None:
    for synthetic in (True, False):
        with matplotlib.rc_context(STYLE):
            figure = confusion_matrix(LABELS, LABELS, ["Benign", "Malignant"])
            save(figure, tmp_path / "figure.png", "Test split, n = 10", synthetic=synthetic)
        texts = [text.get_text() for text in figure.texts]
        assert "Test split, n = 10" in texts
        assert (SYNTHETIC in texts) is synthetic


def test_the_stamps_line_is_left_out_of_a_real_runs_figure_and_nothing_else_is(tmp_path: Path) -> None:
    drawn = []
    for synthetic in (True, False):
        with matplotlib.rc_context(STYLE):
            figure = confusion_matrix(LABELS, LABELS, ["Benign", "Malignant"])
            save(figure, tmp_path / "figure.png", "Test split, n = 10", synthetic=synthetic)
        drawn.append(np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")).astype(int))
    stamped, plain = drawn
    line = len(stamped) - len(plain)
    assert line == 36  # 0.24 inches
    titles = 105  # rows: the title and what was measured, without the stamp
    assert np.abs(stamped[:titles] - plain[:titles]).max() < 40  # but for the edges of letters
    np.testing.assert_array_equal(stamped[titles + line :], plain[titles:])
