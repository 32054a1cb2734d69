"""The levers that benchmarks/levers.py measures, and the folds it measures them on."""

from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
import pytest

from benchmarks import levers

# Purple discs on light ground, in two stains: what a session at the microscope changes.
SIDE = 32


def smears(count: int, tint: tuple[float, float, float]) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    made = []
    for _ in range(count):
        x, y, radius = rng.uniform((10, 10, 6), (22, 22, 9))
        disc = np.hypot(rows - y, columns - x) < radius
        image = np.where(disc[..., None], (110, 60, 150), (225, 200, 215)) * tint + rng.normal(0, 5, (SIDE, SIDE, 3))
        made.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(made)


TRAIN, OTHERS = smears(12, (1.0, 1.0, 1.0)), smears(4, (1.0, 0.85, 0.75))


@pytest.mark.parametrize("fit", [levers.reinhard, levers.macenko])
def test_a_normalisation_brings_another_stain_to_the_training_images(
    fit: Callable[[np.ndarray], levers.Pixels],
) -> None:
    before = np.abs(OTHERS.mean((0, 1, 2)) - TRAIN.mean((0, 1, 2))).max()
    after = fit(TRAIN)(OTHERS)
    assert (after.shape, after.dtype) == (OTHERS.shape, np.uint8)
    assert np.abs(after.mean((0, 1, 2)) - TRAIN.mean((0, 1, 2))).max() < 0.6 * before


def test_an_image_without_stain_is_left_as_it_is() -> None:
    white = np.full((1, SIDE, SIDE, 3), 250, np.uint8)
    assert (levers.macenko(TRAIN)(white) == white).all()


def test_a_blurred_image_is_sharpened_and_a_sharp_one_is_not() -> None:
    blurred = np.stack([(image.astype(int) + np.roll(image, 1, 0) + np.roll(image, 1, 1)) // 3 for image in TRAIN])
    blurred = blurred.astype(np.uint8)
    change = levers.unsharpening(TRAIN)
    assert (np.abs(np.diff(change(blurred).astype(int), axis=1)).mean((1, 2, 3)) > 0).all()
    assert levers.images.sharpness(change(blurred)[0]) > levers.images.sharpness(blurred[0])
    sharpest = max(TRAIN, key=levers.images.sharpness)
    assert (change(sharpest[None])[0] == sharpest).all()


def test_mixed_images_keep_the_weight_of_a_class_and_stained_ones_their_class() -> None:
    targets = np.eye(4, dtype=np.float32)[np.arange(12) % 4]
    pixels, mixed = levers.mixup(np.random.default_rng(0), TRAIN, targets)
    assert (pixels.shape, pixels.dtype) == (TRAIN.shape, np.uint8)
    assert mixed.sum(1) == pytest.approx(np.ones(12))
    stained, same = levers.stain_augmentation(np.random.default_rng(0), TRAIN, targets)
    assert (same == targets).all()
    assert 0 < np.abs(stained.astype(int) - TRAIN).mean() < 40


def test_no_fold_sees_a_test_image_and_a_block_lies_between_its_sides() -> None:
    splits = ["train"] * 6 + ["embargo"] + ["val"] * 2 + ["embargo"] + ["test"] * 3
    rows = pd.DataFrame(
        [
            {"class": key, "group": f"{key}-{block:03}", "split": split}
            for key in ("benign", "pro")
            for block, split in enumerate(splits)
            for _ in range(3)
        ]
    )
    first, second = (levers.split(rows, fold) for fold in "AB")
    assert (first == rows["split"].map({"train": "train", "val": "held out"})).equals(first.notna())
    of_benign = second[rows["class"] == "benign"][::3].tolist()
    assert of_benign[:4] == ["held out", "held out", "dropped", "train"]
    assert second[rows["split"].isin(["test", "embargo"])].isna().all()
    assert (second[rows["split"] == "val"] == "train").all()


def test_the_table_has_a_row_a_lever_and_differences_from_the_baseline() -> None:
    def cell(value: float, difference: float) -> dict[str, object]:
        return {
            "value": {"value": value, "low": 0.5, "high": 1.0},
            "difference": {"value": difference, "low": -0.1, "high": 0.1},
        }

    text = levers.table({"baseline": {"A": cell(0.9, 0.0)}, "MixUp": {"A": cell(0.8, -0.1)}})
    assert "| baseline | 0.900 |  |" in text
    assert "| MixUp | 0.800 | -0.100 [-0.100, 0.100] |" in text


def test_the_average_follows_the_weights_and_leaves_the_training_alone() -> None:
    def fitted(averaged: bool) -> tuple[np.ndarray, np.ndarray]:
        """The weights as trained, and after the average has been put in place."""
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        network.compile(keras.optimizers.SGD(0.1), "mse")
        average = levers.Average(network.trainable_variables)
        for _ in range(3):
            callbacks = [average] if averaged else []
            network.fit(np.ones((8, 2)), np.full(8, 5.0), batch_size=4, verbose=0, callbacks=callbacks)
        last = network.get_weights()[0].copy()
        average.put_in_place()
        return last, network.get_weights()[0]

    (plain, first), (last, mean) = fitted(False), fitted(True)
    assert np.allclose(last, plain)
    assert (np.minimum(first, last) < mean).all()
    assert (mean < np.maximum(first, last)).all()
