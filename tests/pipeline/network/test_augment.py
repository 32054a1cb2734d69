"""Augmented views: what changes, what must not."""

import numpy as np
import pytest

from pipeline.network import augment
from pipeline.sections import Augment

NONE = Augment(flip=False, rotation=0, zoom=0, brightness=0, erase_corner=0)
ALL = Augment(flip=True, rotation=20, zoom=0.1, brightness=0.15, erase_corner=0.2)
HASH = "3f" * 32
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def test_no_augmentation_changes_no_pixel() -> None:
    assert np.array_equal(augment.view(IMAGE, NONE, 1, 0, HASH), IMAGE)


def test_a_view_depends_on_seed_number_and_image_alone() -> None:
    first = augment.view(IMAGE, ALL, 1, 0, HASH)
    assert np.array_equal(first, augment.view(IMAGE.copy(), ALL, 1, 0, HASH))
    for other in (
        augment.view(IMAGE, ALL, 2, 0, HASH),
        augment.view(IMAGE, ALL, 1, 1, HASH),
        augment.view(IMAGE, ALL, 1, 0, "40" * 32),
    ):
        assert not np.array_equal(first, other)


def test_flips_give_the_four_mirror_images_and_no_other() -> None:
    expected = {image.tobytes() for image in (IMAGE, IMAGE[::-1], IMAGE[:, ::-1], IMAGE[::-1, ::-1])}
    flipped = NONE.model_copy(update={"flip": True})
    assert {augment.view(IMAGE, flipped, 0, n, HASH).tobytes() for n in range(40)} == expected


def test_rotation_turns_about_the_centre_and_mirrors_what_comes_in() -> None:
    target = np.full((65, 65, 3), 200, np.uint8)
    target[32, 32] = 0
    for number in range(10):
        turned = augment.view(target, NONE.model_copy(update={"rotation": 45}), 0, number, HASH)
        assert turned[32, 32, 0] < 100
        assert turned[[0, 0, -1, -1], [0, -1, 0, -1]].min() == 200  # no black corners


def test_brightness_stays_within_its_bounds() -> None:
    grey = np.full((32, 32, 3), 100, np.uint8)
    means = [augment.view(grey, NONE.model_copy(update={"brightness": 0.15}), 0, n, HASH).mean() for n in range(60)]
    assert min(means) >= 85
    assert max(means) <= 115
    assert max(means) - min(means) > 15


def test_the_scale_bars_corner_is_painted_over_in_about_half_of_the_views() -> None:
    image = np.full((50, 50, 3), 180, np.uint8)
    image[45:, 45:] = 0
    erased = [
        augment.view(image, NONE.model_copy(update={"erase_corner": 0.2}), 0, n, HASH).min() == 180 for n in range(100)
    ]
    assert 30 <= sum(erased) <= 70


@pytest.mark.parametrize("size", [32, 65, 224])
def test_shape_and_type_stay(size: int) -> None:
    image = np.zeros((size, size, 3), np.uint8)
    result = augment.view(image, ALL, 0, 0, HASH)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
