"""Pretraining on a backbone of two layers: what it learns, that it resumes, and that VICReg is the paper's."""

from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from pipeline.data.cells import Cells
from pipeline.network import classifier, jitter, pretraining
from pipeline.network.backbones import BACKBONES, Backbone
from pipeline.network.pretraining import Plan
from pipeline.stage import Problem

SIZE = 16


def small(include_top: bool, weights: None, **where: Any) -> keras.Model:
    assert not include_top
    image = where.get("input_tensor")
    image = image if image is not None else keras.Input(where["input_shape"])
    x = keras.layers.Conv2D(8, 3, 2, padding="same", name="first")(image)
    x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="bn")(x))
    x = keras.layers.Conv2D(12, 3, 2, padding="same", activation="relu", name="second")(x)
    return keras.Model(keras.utils.get_source_inputs(image), x)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "toy", Backbone(small, (120, 110, 100), (1, 1, 1), "first", bgr_kernel="first"))
    monkeypatch.setattr(classifier, "precision", lambda: "float32")


def plan(**changes: Any) -> Plan:
    usual: dict[str, Any] = {"backbone": "toy", "size": SIZE, "tiles": 2, "epochs": 3, "batch": 8}
    return Plan(**usual | {"learning_rate": 0.01, "colour": 1.0, "seed": 4} | changes)


def cells(labelled: int = 2, unlabelled: int = 20) -> Cells:
    """Label sets of two kinds of cell, dark and pale, the second upside down; every fifth is held out."""
    rng, rows, pixels = np.random.default_rng(0), [], []
    for number in range(labelled * 40):
        which, kind = divmod(number, 40)
        side = "held out" if number % 5 == 0 else "train"
        rows.append({"set": f"set{which}", "class": "ab"[kind % 2 ^ which], "side": side})
        pixels.append(rng.integers(180, 250, (2 * SIZE, 2 * SIZE, 3)) - (kind % 2) * 150)
    for _ in range(unlabelled):
        rows.append({"set": "free", "class": "", "side": "train"})
        pixels.append(rng.integers(0, 40, (2 * SIZE, 2 * SIZE, 3)) + rng.integers(0, 210, 3))
    found = pd.DataFrame(rows).assign(path="", sha256="", problem="")
    return Cells(np.stack(pixels).clip(0, 255).astype(np.uint8), found, Counter())


def trained(state: Path, images: Cells, wanted: Plan, stop_after: int = 99) -> tuple[list[np.ndarray], list[Any]]:
    """Weights and history; `stop_after`: the epoch in which the power fails."""

    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == stop_after:
            raise KeyboardInterrupt

    made = pretraining.learner(wanted, images, None)
    history = pretraining.fit(made, wanted, images, state, on_epoch)
    return [value.numpy() for value in (*made.whole.variables, *made.whole.optimizer.variables)], history


def test_two_label_sets_are_learnt_at_once_each_by_its_own_head(tmp_path: Path) -> None:
    _, history = trained(tmp_path / "state", cells(unlabelled=0), plan(epochs=8, colour=0.3))
    assert history[-1]["accuracy/set0"] == history[-1]["accuracy/set1"] == 1.0
    assert history[-1]["loss/labelled"] < 0.5 * history[0]["loss/labelled"]
    assert "loss/unlabelled" not in history[-1]


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "precision"),
    [(2, 0, "float32"), (1, 20, "mixed_bfloat16"), (1, 20, "mixed_float16")],  # the last is what a GPU trains in
)
def test_an_interrupted_pretraining_ends_with_the_very_weights_of_one_that_was_not(
    labelled: int, unlabelled: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "precision", lambda: precision)
    images = cells(labelled, unlabelled)
    whole, history = trained(tmp_path / "whole", images, plan())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", images, plan(), stop_after=1)
    resumed, again = trained(tmp_path / "cut", images, plan())
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))
    for a, b in zip(history, again, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_without_labels_the_features_do_not_collapse(tmp_path: Path) -> None:
    images, wanted = cells(0, 64), plan(epochs=15, batch=32, learning_rate=0.003, colour=0.2)
    made = pretraining.learner(wanted, images, None)
    history = pretraining.fit(made, wanted, images, tmp_path / "state", lambda epoch, metrics: None)
    assert history[-1]["loss/unlabelled"] < 0.7 * history[0]["loss/unlabelled"]
    assert made.expander is not None
    seen = jitter.plain(images.pixels, SIZE)
    embedded = made.expander(pretraining._features(made, seen, 2, training=False), training=False).numpy()
    assert np.median(embedded.std(axis=0)) > 0.15  # of noise, which no view knows again, 0.02


def test_each_cell_keeps_its_own_features_in_an_input_of_several() -> None:
    images = cells(unlabelled=0)
    made = pretraining.learner(plan(tiles=4), images, None)
    seen = jitter.plain(images.pixels[:16], SIZE).numpy()
    before = pretraining._features(made, tf.constant(seen), 4, training=False).numpy()
    seen[6] = 255 - seen[6]
    changed = np.abs(pretraining._features(made, tf.constant(seen), 4, training=False).numpy() - before).max(axis=1)
    assert changed.argmax() == 6  # its neighbours see its edge
    assert (changed[[0, 3, 8, 12, 13, 14, 15]] == 0).all()


def test_vicreg_is_what_the_paper_writes() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 0.7, (2, 9, 5)).astype(np.float32)
    expected = 25 * np.mean((first - second) ** 2)
    for each in (first, second):
        expected += 25 * np.maximum(0, 1 - np.sqrt(each.var(axis=0, ddof=1) + 1e-4)).mean() / 2
        covariance = np.cov(each.T)
        expected += (covariance[~np.eye(5, dtype=bool)] ** 2).sum() / 5
    assert pretraining.vicreg(first, second).numpy() == pytest.approx(expected / 25, rel=1e-5)


def test_cells_that_would_share_a_part_of_the_maps_are_refused() -> None:
    with pytest.raises(Problem, match=r"maps of 15 pixels are 4 × 4, which 3 × 3 cells cannot share"):
        pretraining.learner(plan(size=5, tiles=3, batch=9), cells(), None)


def test_a_view_depends_on_its_seed_alone_and_varies_place_size_and_colour() -> None:
    pixels = np.full((30, 64, 64, 3), (230, 200, 210), np.uint8)
    pixels[:, 22:42, 22:42] = (90, 40, 130)
    views = [jitter.view(pixels, 32, 1.0, np.array([1, seed], np.int32)).numpy() for seed in (0, 0, 1)]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
    dark = views[0].astype(int).sum(-1)
    areas = (dark < (dark.min((1, 2)) + dark.max((1, 2)))[:, None, None] / 2).mean((1, 2))
    assert areas.max() > 2 * areas.min()
    assert views[0].mean((1, 2)).std(axis=0).min() > 5
    untouched = jitter.view(pixels, 32, 0.0, np.array([1, 0], np.int32)).numpy()
    assert np.abs(np.median(untouched, axis=(1, 2)) - (230, 200, 210)).max() < 2
