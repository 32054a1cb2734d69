"""Augmented views: what changes, what must not."""

import numpy as np
import pytest

from pipeline.network import augment, scale_bar, stain
from pipeline.sections import Augment

NONE = Augment(flip=False, rotation=0, zoom=0, brightness=0, stain=0, erase_corner=0, scale_bar=0)
ALL = Augment(flip=True, rotation=20, zoom=0.1, brightness=0.15, stain=1, erase_corner=0.2, scale_bar=0.5)
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


def test_stain_moves_the_colours_about_as_far_as_sessions_lie_apart() -> None:
    smear = np.full((32, 32, 3), (215, 200, 220), np.uint8)
    smear[8:24, 8:24] = (110, 70, 150)
    before = stain.to_lab(smear)
    for share in (0.5, 1.0):
        stained = NONE.model_copy(update={"stain": share})
        views = [stain.to_lab(augment.view(smear, stained, 0, number, HASH)) for number in range(1, 201)]
        shifts = np.array([lab.mean(0) - before.mean(0) for lab in views])
        ratios = np.log([lab.std(0) / before.std(0) for lab in views])
        assert np.abs(shifts.mean(0)).max() < 0.2 * share * stain.SHIFT.max()
        assert shifts.std(0) == pytest.approx(share * stain.SHIFT, rel=0.35)
        assert ratios.std(0) == pytest.approx(share * stain.LOG_RATIO, rel=0.25)


def test_the_first_view_keeps_its_stain() -> None:
    unstained = ALL.model_copy(update={"stain": 0})
    for number, same in ((0, True), (1, False)):
        drawn, plain = (augment.view(IMAGE, each, 1, number, HASH) for each in (ALL, unstained))
        assert np.array_equal(drawn, plain) == same


def test_whether_stain_is_drawn_changes_nothing_else_of_a_view() -> None:
    image = np.full((50, 50, 3), 180, np.uint8)
    image[45:, 45:] = 0
    image[:5, :5] = 90  # tells the flips apart
    plain = NONE.model_copy(update={"flip": True, "erase_corner": 0.2})
    stained = plain.model_copy(update={"stain": 0.2})
    for number in range(20):
        before, after = (augment.view(image, each, 0, number, HASH).astype(int) for each in (plain, stained))
        assert np.abs(after - before).max() < 40


def test_scale_bars_are_drawn_in_that_share_of_views_at_the_bottom_right_alone() -> None:
    image = np.full((224, 224, 3), 180, np.uint8)
    barred = NONE.model_copy(update={"scale_bar": 0.5})
    changed = [(augment.view(image, barred, 0, number, HASH) != 180).any(2) for number in range(200)]
    assert 75 <= sum(each.any() for each in changed) <= 120  # a few bars lack all their parts
    where = np.any(changed, axis=0)
    assert not where[:150].any()
    assert not where[:, :150].any()
    assert where[190:, 170:].mean() > 0.95
    assert len({each.tobytes() for each in changed if each.any()}) > 70  # no two alike, or hardly


def test_beside_drawn_bars_no_view_keeps_its_own() -> None:
    image = np.full((50, 50, 3), 180, np.uint8)
    image[45:, 45:] = 0
    barred = NONE.model_copy(update={"erase_corner": 0.2, "scale_bar": 1e-9})
    views = [augment.view(image, barred, 0, number, HASH) for number in range(20)]
    assert all((each == 180).all() for each in views)


def test_whether_bars_are_drawn_changes_nothing_else_of_a_view() -> None:
    barred = ALL.model_copy(update={"flip": False, "rotation": 0})
    plain = barred.model_copy(update={"scale_bar": 0})
    image = np.full((224, 224, 3), 180, np.uint8)
    image[:40] = 90
    for number in range(20):
        before, after = (augment.view(image, each, 1, number, HASH).astype(int) for each in (plain, barred))
        assert np.abs(after - before)[:120, :120].max() <= 12  # what stain makes of another mean


@pytest.mark.parametrize("size", [8, 16, 32, 65, 512])
def test_a_bar_fits_any_image_and_leaves_the_one_that_it_is_drawn_on(size: int) -> None:
    image = np.full((size, size, 3), 180, np.uint8)
    for seed in range(50):
        barred = scale_bar.drawn(image, np.random.default_rng(seed))
        assert (barred.shape, barred.dtype) == (image.shape, np.uint8)
    assert (image == 180).all()


def test_colours_come_back_from_lab_and_grey_has_none() -> None:
    assert np.abs(stain.from_lab(stain.to_lab(IMAGE), IMAGE.shape).astype(int) - IMAGE).max() <= 1
    grey = stain.to_lab(np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2))
    assert np.abs(grey[:, 1:]).max() < 0.01
    assert (np.diff(grey[:, 0]) > 0).all()
