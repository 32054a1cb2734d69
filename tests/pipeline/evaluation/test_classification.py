"""The interval of a mean of recalls."""

import numpy as np
import pytest

from pipeline.evaluation import classification, metrics


def test_an_interval_of_balanced_accuracy_from_recalls_holds_the_truth_as_often_as_it_says() -> None:
    truth, n = np.array([0.8, 0.97, 1.0, 0.98]), np.array([59, 135, 117, 129])
    found = [
        classification.mean_of([metrics.wilson(*pair) for pair in zip(drawn.tolist(), n.tolist(), strict=True)])
        for drawn in np.random.default_rng(0).binomial(n, truth, (400, 4))
    ]
    held = np.mean([each.low <= truth.mean() <= each.high for each in found])
    assert 0.92 <= held <= 0.99
    one = metrics.wilson(47, 59)
    alone = classification.mean_of([one])
    assert (alone.value, alone.low, alone.high) == pytest.approx((one.value, one.low, one.high))
