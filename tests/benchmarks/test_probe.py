"""The linear probe of benchmarks/probe.py: its folds, its features, and that it tells those that know the class."""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from benchmarks import probe
from pipeline import params
from pipeline.stage import Problem
from tests.project import ROOT

RECIPE = params.load(ROOT / "presets/all4.yaml")
BLOCK = RECIPE.prepare.block


def training_rows() -> pd.DataFrame:
    """Six blocks of each class, of which the first two of the first class share near-duplicates."""
    rows = [
        {"path": f"{c.key}/WBC-{number:03d}.jpg", "class": c.key, "label": i, "group": f"{c.key}-{number // BLOCK:03d}"}
        for i, c in enumerate(RECIPE.classes)
        for number in range(0, 6 * BLOCK, 6)
    ]
    first = RECIPE.classes[0].key
    return pd.DataFrame(rows).replace({"group": {f"{first}-001": f"{first}-000"}})


def test_features_that_hold_the_class_are_told_from_noise() -> None:
    rows = training_rows()
    noise = np.random.default_rng(0).normal(size=(len(rows), 20))
    knowing = noise.copy()
    knowing[np.arange(len(rows)), rows["label"]] += 6
    found = probe.probes(RECIPE, {"knows": knowing, "noise": noise}, rows)
    assert found["knows"]["balanced_accuracy"]["value"] > 0.97
    assert found["noise"]["balanced_accuracy"]["value"] < 0.4
    assert "| b | knows | 0.9" in probe.table({"b": found}) or "| b | knows | 1.0" in probe.table({"b": found})


def test_features_are_the_layers_means_by_keras_own_network(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    base.save_weights(tmp_path / "v.weights.h5")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    found = probe.features(tmp_path / "v.weights.h5", "VGG16", ["block3_pool"], images)
    maps = keras.Model(base.input, base.get_layer("block3_pool").output)(
        keras.applications.vgg16.preprocess_input(images.astype(np.float32))
    )
    expected = np.mean(maps, axis=(1, 2))
    assert np.abs(found["block3_pool"] - expected).max() <= 1e-4 * np.abs(expected).max()
    with pytest.raises(Problem, match="--layer: VGG16 has no conv9; its last are"):
        probe.features(tmp_path / "v.weights.h5", "VGG16", ["conv9"], images)
