"""benchmarks/referral.py: what a signal is said to find."""

import numpy as np
import pytest

from benchmarks import referral


def test_a_signal_that_knows_the_errors_leaves_none_and_one_that_does_not_leaves_their_share() -> None:
    right = np.arange(1000) % 20 > 0  # one in twenty is wrong
    doubt = np.linspace(0, 1, 1000)
    knows = referral.measured(np.where(right, doubt, 2 + doubt), right)
    assert knows["auroc"] == 1
    assert (knows["5%"], knows["10%"]) == (0, 0)
    assert knows["3%"] == pytest.approx(20 / 970)
    blind = referral.measured(np.random.default_rng(0).random(1000), right)
    assert blind["auroc"] == pytest.approx(0.5, abs=0.1)
    assert blind["10%"] == pytest.approx(0.05, abs=0.01)
    assert referral.measured(np.where(right, 2 + doubt, doubt), right)["auroc"] == 0


def test_trainings_that_agree_have_no_disagreement_however_unsure_they_are() -> None:
    unsure, apart = np.full((2, 1, 4), 0.25), np.eye(4)[[[0], [1]]]
    assert referral.disagreement(unsure) == pytest.approx([0], abs=1e-9)
    assert referral.disagreement(apart) == pytest.approx([np.log(2)], abs=1e-9)
