"""What stands above every figure."""

from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from leukdetect.contract import Class
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.classification import WholeHeadline, whole
from pipeline.evaluation.metrics import group_weights
from pipeline.reporting.datasheet import SYNTHETIC
from pipeline.reporting.figures.classification import confusion_matrix, roc
from pipeline.reporting.figures.style import FAINT, INK, RED, STYLE, looks, save
from tests import tiny_model

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
    assert line == 72  # 0.24 inches at 300 dpi
    titles = 210  # rows: the title and what was measured, without the stamp
    assert np.abs(stamped[:titles] - plain[:titles]).max() < 40  # but for the edges of letters
    np.testing.assert_array_equal(stamped[titles + line :], plain[titles:])


def test_of_up_to_24_lines_none_has_the_colour_or_the_dash_of_another() -> None:
    lines = looks(24)
    assert len({colour for colour, _ in lines}) == len({dashes for _, dashes in lines}) == 24
    linear = np.array([to_rgb(colour) for colour in (*(colour for colour, _ in lines), INK, RED, FAINT, "white")])
    apart = [np.linalg.norm(a - b) for i, a in enumerate(linear) for b in linear[:i]]
    assert min(apart) > 0.14
    assert len(set(looks(100))) == 100  # and with more classes no line is another's twin


def test_a_figure_has_300_dots_an_inch_and_a_vector_file_beside_it(tmp_path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure = confusion_matrix(LABELS, LABELS, ["Benign", "Malignant"])
        save(figure, tmp_path / "figure.png", "Test split, n = 10", synthetic=True)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    drawn = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) > 20


def drawn_roc(classes: int, strength: float, tmp_path: Path) -> tuple[Figure, WholeHeadline]:
    """`strength`: of the answers; 0 is chance."""
    rng, n = np.random.default_rng(0), 10 * classes
    labels = np.arange(n) % classes
    probabilities = rng.dirichlet(np.ones(classes), n) + strength * np.eye(classes)[labels]
    probabilities /= probabilities.sum(1, keepdims=True)
    kinds = [Class(key=f"k{i}", label=f"Kind {i}", malignant=i == 0) for i in range(classes)]
    contract = tiny_model.write(tmp_path / "model.onnx", classes=kinds)
    answers = Answers(
        probabilities, rng.random(n), rng.random((n, 2)), rng.random((n, classes, 2, 2)), probabilities[:, 0],
        probabilities[:, 0] > 0.4, [set() for _ in labels],
    )  # fmt: skip
    test = Sample(np.zeros((n, 4, 4, 3), np.uint8), labels, labels, group_weights(labels, np.arange(n), 50, 0))
    found = whole(answers, test, np.arange(classes) == 0, [each.key for each in kinds])
    with matplotlib.rc_context(STYLE):
        figure = roc(answers, labels, contract, found)
        figure.draw_without_rendering()
    return figure, found


@pytest.mark.parametrize("classes", [4, 21])
def test_a_legend_covers_nothing_and_gives_each_classs_interval(classes: int, tmp_path: Path) -> None:
    """Weak answers, whose curves cross all of the panel."""
    figure, found = drawn_roc(classes, 0, tmp_path)
    (legend,) = figure.legends
    (axes,) = figure.axes
    drawn = axes.get_tightbbox()
    assert drawn
    assert not legend.get_window_extent().overlaps(drawn)
    assert figure.bbox.contains(*legend.get_window_extent().max)
    texts = [text.get_text() for text in legend.get_texts()]
    assert f"Kind 1 against the rest: {found.per_class['k1'].auroc}" in texts
    assert len(texts) == classes + 2


def test_the_larger_corner_of_strong_answers_keeps_its_labels_off_the_diagonal(tmp_path: Path) -> None:
    figure, _ = drawn_roc(4, 10, tmp_path)
    (axes,) = figure.axes
    (corner,) = axes.child_axes
    for label in (*corner.get_xticklabels(), *corner.get_yticklabels()):
        (left, bottom), (right, top) = axes.transData.inverted().transform(label.get_window_extent())
        assert top < left or bottom > right, label
