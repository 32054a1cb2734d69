"""Calibration: temperature, operating point, unlikeness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from pipeline.model_file import calibration


def test_the_temperature_that_made_the_labels_is_found() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits, axis=1)])
    assert calibration.fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.1)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_temperature_never_makes_validation_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, rng.uniform(0.1, 5), (50, 4)), rng.integers(0, 4, 50)
    temperature = calibration.fit_temperature(logits, labels)
    assert calibration.nll(logits / temperature, labels) <= calibration.nll(logits, labels) + 1e-6


@given(st.integers(0, 10_000), st.sampled_from([0.9, 0.95, 0.99]))
@settings(max_examples=100, deadline=None)
def test_the_operating_point_reaches_its_sensitivity_and_is_the_highest_that_does(seed: int, target: float) -> None:
    rng = np.random.default_rng(seed)
    p, malignant = rng.random(80) * 0.5, rng.random(80) < 0.7
    malignant[0] = True
    threshold = calibration.operating_point(p, malignant, target)
    assert (p[malignant] >= threshold).mean() >= target
    assert (p[malignant] > threshold).mean() < target


def test_a_perfect_separation_still_calls_an_even_chance_malignant() -> None:
    assert calibration.operating_point(np.array([0.001, 0.998, 0.999]), np.array([False, True, True]), 0.99) == 0.5


def test_unlikeness_ranks_training_held_out_and_foreign_images() -> None:
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(10, 300))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 3, n)
        return np.abs(
            np.eye(10)[labels] @ basis * 5 + rng.normal(size=(n, 10)) @ basis + rng.normal(0, 0.1, (n, 300))
        ), labels

    train, labels = draw(500)
    space = calibration.fit_unlikeness(train, labels, 32)
    held_out = calibration.unlikeness(draw(200)[0], space)
    foreign = calibration.unlikeness(np.abs(rng.normal(size=(200, 300)) * 5), space)
    assert calibration.unlikeness(train, space).mean() <= held_out.mean()
    assert foreign.min() > held_out.max()


def test_quality_bounds_hold_the_training_images() -> None:
    rng = np.random.default_rng(0)
    looks = np.column_stack([rng.uniform(120, 200, 500), rng.uniform(50, 400, 500), rng.uniform(0.4, 1, 500)])
    bounds = calibration.quality_bounds(looks)
    low, high = bounds["brightness"]
    assert 0 <= low < looks[:, 0].min()
    assert looks[:, 0].max() < high <= 255
    assert 0 < bounds["min_sharpness"] < looks[:, 1].min()
    assert 0 < bounds["min_stain"] < looks[:, 2].min()
