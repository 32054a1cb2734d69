"""What is said of held-out folds, from predictions that are known."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from pipeline import params
from pipeline.evaluation import learning_curve
from pipeline.evaluation.learning_curve import Folds
from pipeline.evaluation.metrics import Estimate
from pipeline.reporting.figures.learning_curve import figure
from pipeline.reporting.figures.style import STYLE

KEYS = ["benign", "early", "pre", "pro"]
RECIPE = params.load()


def predictions(wrong_in_fold_1: int) -> pd.DataFrame:
    """Two folds, in each five patients of each class with two images; in fold 1 so many patients of `pro` are wrong."""
    rows = [
        {
            "class": key,
            "group": f"{key}-{fold}{patient}",
            "predicted": "pre" if key == "pro" and fold == 1 and patient < wrong_in_fold_1 else key,
            "colour": "benign",
            "fold": fold,
            "trained_on": 30 + 10 * fold,
        }
        for fold in range(2)
        for key in KEYS
        for patient in range(5)
        for _ in range(2)
    ]
    return pd.DataFrame(rows)


def test_all_folds_count_together_and_each_is_told() -> None:
    found = learning_curve.summary(predictions(wrong_in_fold_1=5), RECIPE)
    assert found.__pydantic_extra__["recall_pro"].value == 0.5
    assert found.balanced_accuracy.value == 0.875
    assert found.balanced_accuracy.low < 0.875 < found.balanced_accuracy.high
    assert found.each_fold == [1.0, 0.75]
    assert (found.images, found.groups, found.trained_on) == (80, 40, 35.0)


def test_the_baseline_stands_beside_it_with_the_margin() -> None:
    found = learning_curve.summary(predictions(wrong_in_fold_1=0), RECIPE)
    assert found.colour_only.value == 0.25
    assert found.margin_over_colour == Estimate(0.75, 0.75, 0.75)


def test_folds_are_known_again_by_what_trains_and_on_what_images_alone() -> None:
    judged = RECIPE.model_copy(update={"evaluate": RECIPE.evaluate.model_copy(update={"prevalence": 0.5})})
    trained = RECIPE.model_copy(update={"seed": RECIPE.seed + 1})
    key = learning_curve.key(RECIPE, "data")
    assert learning_curve.key(judged, "data") == key
    assert key not in {learning_curve.key(trained, "data"), learning_curve.key(RECIPE, "other data")}


@pytest.mark.parametrize("shares", [["1"], ["0.25", "0.5", "1"]])
def test_the_curve_has_a_point_and_an_interval_for_each_share_and_for_the_baseline(shares: list[str]) -> None:
    by_share = {
        share: learning_curve.summary(predictions(5), RECIPE).model_copy(update={"trained_on": 100 * float(share)})
        for share in shares
    }
    with matplotlib.rc_context(STYLE):
        drawn = figure(Folds(key="", folds=2, by_share=by_share))
    lines = {line.get_marker(): line for line in drawn.axes[0].lines}
    for marker, value in (("o", 0.875), ("s", 0.25)):
        points = np.asarray(lines[marker].get_xydata(), float)
        assert points.tolist() == [[100 * float(share), value] for share in shares]
