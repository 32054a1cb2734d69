"""Parts of the test split."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import answers, metrics, slices


def sample(pixels: np.ndarray, labels: np.ndarray, groups: np.ndarray, resamples: int) -> answers.Sample:
    return answers.sample(pixels, pd.DataFrame({"label": labels, "group": groups, "sha256": groups}), resamples, 0)


def test_a_part_of_few_groups_or_without_a_mistake_has_an_interval_too() -> None:
    pixels, labels = np.zeros((40, 8, 8, 3), np.uint8), np.zeros(40, int)
    pixels[20:] = 200
    test = sample(pixels, labels, np.repeat(["a", "b", "c", "d"], 10), 200)
    table = slices.table(test, labels).set_index("slice")
    assert (table["accuracy"] == 1).all()
    assert (table["high"] == 1).all()
    # Wilson: 20 of 20, and 10 of 10.
    assert table.loc["brightness", "low"].tolist() == pytest.approx([0.8389, 0.8389], abs=1e-4)
    assert table.loc["group", "low"].tolist() == pytest.approx([0.7225] * 4, abs=1e-4)


def test_groups_that_differ_widen_it_beyond_wilsons() -> None:
    labels, groups = np.zeros(400, int), np.repeat(np.arange(8), 50)
    predicted = (groups % 2).astype(int)  # whole groups are right or wrong
    test = sample(np.zeros((400, 8, 8, 3), np.uint8), labels, groups, 500)
    table = slices.table(test, predicted)
    [row] = table[table["slice"] == "sharpness"].itertuples()
    alone = metrics.wilson(200, 400)
    assert row.low < alone.low - 0.1
    assert row.high > alone.high + 0.1
