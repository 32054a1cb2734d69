"""The shortcut audit in both directions, on rendered smears: one model reads the cell, one reads the background."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from pipeline.data import smears
from pipeline.evaluation import answers, nuclei, shortcuts
from pipeline.registry import bounds, gate
from tests import measured

SIZE, PATIENTS, IMAGES = 64, 12, 4
TINTS = np.array([(0, 0, -45), (0, -45, 0), (-45, 0, 0), (-30, -30, -45)])  # grey levels, a class

Predict = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def smear() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rendered images [N, S, S, 3], labels and patients."""
    cells = [(c, p, i) for c in range(4) for p in range(1, PATIENTS + 1) for i in range(1, IMAGES + 1)]
    pixels = np.stack([smears.render(smears.CLASSES[c], p, 1, i, SIZE, seed=5) for c, p, i in cells])
    return pixels, np.array([c for c, _, _ in cells]), np.array([f"{c}-{p}" for c, p, _ in cells])


def tinted(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same smears as if each class came from a slide scanner of its own: the class leaks through the background."""
    bright = pixels.min(axis=3, keepdims=True) > 150
    return np.clip(pixels + np.where(bright, TINTS[labels][:, None, None], 0), 0, 255).astype(np.uint8)


def learn(look: Predict, pixels: np.ndarray, labels: np.ndarray) -> Predict:
    """A model that sees what `look` makes of images, learnt from even patients."""
    seen = np.arange(len(labels)) // IMAGES % 2 == 0
    forest = RandomForestClassifier(200, random_state=0).fit(look(pixels[seen]), labels[seen])
    return lambda images: np.asarray(forest.predict(look(images)))


def cell(pixels: np.ndarray) -> np.ndarray:
    """The nucleus: its size and how its inside looks; nothing else."""
    rows = []
    for image in pixels:
        inside = nuclei.nuclei(image)
        red = image[..., 0].astype(float)[inside]
        edges = ndimage.gaussian_gradient_magnitude(image[..., 0].astype(float), 1)[inside]
        rows.append([inside.sum(), *(f(x) if len(x) else 0 for x in (red, edges) for f in (np.std, np.mean))])
    return np.array(rows)


def background(pixels: np.ndarray) -> np.ndarray:
    """The brightest pixels' colour: glass, never a cell."""
    return np.stack([np.quantile(image.reshape(-1, 3), 0.9, axis=0) for image in pixels])


def audited(
    predict: Predict, pixels: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> dict[str, shortcuts.Changed]:
    held_out = np.arange(len(labels)) // IMAGES % 2 == 1
    rows = pd.DataFrame({"label": labels, "group": groups, "sha256": groups})[held_out]
    sample = answers.sample(pixels[held_out], rows, 200, 0)
    before = predict(sample.pixels)
    every = np.arange(len(before))
    return {
        name: shortcuts.ask(name, lambda alter: predict(alter(every)), alter, sample, before)
        for name, alter in shortcuts.experiments(sample, corner=0.25).items()
    }


def value(found: shortcuts.Changed) -> float:
    return found.balanced_accuracy.value


def as_they_are(found: shortcuts.Changed) -> float:
    """Balanced accuracy of the images before they were changed."""
    return found.balanced_accuracy.value + found.drop.value


def refused(audit: dict[str, shortcuts.Changed]) -> list[str]:
    """What the shipped recipe's gate says of a model that is otherwise good."""
    read = {
        "audit.cells_masked.balanced_accuracy": audit["cells_masked"].balanced_accuracy.value,
        "audit.corner_of_another.drop": audit["corner_of_another"].drop.value,
    }
    found = measured.report(measured.good(read))
    return [check.name for check in gate.verdict(found, bounds.load(), None, ("benign", "pro")) if not check.passed]


def test_a_model_that_reads_the_background_is_found_out_and_refused(
    smear: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    pixels, labels, groups = smear
    leaky = tinted(pixels, labels)
    found = audited(learn(background, leaky, labels), leaky, labels, groups)
    assert as_they_are(found["grey"]) > 0.8
    assert value(found["cells_masked"]) > 0.8
    assert value(found["corner_masked"]) > 0.8
    assert value(found["grey"]) < 0.5
    assert refused(found) == ["cells painted over"]


def test_a_model_that_reads_the_cell_falls_to_chance_without_it_and_passes(
    smear: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    pixels, labels, groups = smear
    found = audited(learn(cell, pixels, labels), pixels, labels, groups)
    assert as_they_are(found["grey"]) > 0.6
    assert value(found["background_median"]) > 0.6
    assert value(found["cells_masked"]) < 0.4
    assert refused(found) == []


def test_the_same_share_of_every_image_is_masked_and_it_covers_the_nucleus(
    smear: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    pixels = smear[0]
    dark = np.stack([nuclei.nuclei(image) for image in pixels])
    masks = nuclei.cells(dark)
    assert np.ptp(masks.mean(axis=(1, 2))) < 0.03  # ties of a distance
    assert (dark & ~masks).mean(axis=(1, 2)).max() < 0.01


def test_every_pixel_of_the_mask_is_as_near_to_a_nucleus_as_any_outside(
    smear: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """The nearest pixels, found by sorting all distances; where nothing is stained, the nearest to the middle."""
    dark = np.stack([nuclei.nuclei(image) for image in smear[0][:20]])
    dark[3] = False
    masks, share = nuclei.cells(dark), nuclei.cells(dark).mean(axis=(1, 2)).min()
    dark[3, SIZE // 2, SIZE // 2] = True
    for stained, mask in zip(dark, masks, strict=True):
        away = ndimage.distance_transform_edt(~stained).astype(np.float16)
        limit = np.sort(away.ravel())[int(share * away.size) - 1]
        assert np.array_equal(mask, away <= limit)


def test_nuclei_are_counted_and_cut_out_black_is_none() -> None:
    field = np.full((96, 96, 3), 230, np.uint8)
    across, down = np.meshgrid(np.arange(96), np.arange(96))
    for x, y in ((20, 20), (70, 25), (45, 70)):
        field[(across - x) ** 2 + (down - y) ** 2 < 90] = (90, 60, 140)
    field[(across - 20) ** 2 + (down - 75) ** 2 < 90] = (215, 120, 130)  # a red cell
    assert nuclei.count(nuclei.nuclei(field)) == 3
    field[:, 88:] = 0
    assert nuclei.count(nuclei.nuclei(field)) == 3
    assert nuclei.count(nuclei.nuclei(np.full((64, 64, 3), 200, np.uint8))) == 0


def test_grey_images_keep_their_luma_and_lose_their_colour() -> None:
    pixels = np.array([[[[255, 0, 0], [10, 10, 10]]]], np.uint8)
    assert shortcuts.grey(pixels).tolist() == [[[[76] * 3, [10] * 3]]]


def corner(pixels: np.ndarray) -> np.ndarray:
    """The darkest column of the corner: how long a scale bar is."""
    return (pixels[:, -SIZE // 4 :, -SIZE // 4 :].max(3).min(1) < 20).sum(1, keepdims=True)


def test_a_model_that_reads_the_scale_bar_is_found_out_by_another_class_s(
    smear: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    pixels, labels, groups = smear
    barred = pixels.copy()
    for image, label in zip(barred, labels, strict=True):
        image[-4:-2, -4 - 2 * label : -2] = 0
    found = audited(learn(corner, barred, labels), barred, labels, groups)
    assert as_they_are(found["corner_of_another"]) > 0.9
    assert value(found["corner_of_another"]) < 0.1
    assert "corner drop" in refused(found)
    assert value(found["corner_masked"]) > 0.2  # it says one class of them all: painted over, a quarter stays right


def test_the_other_corner_is_of_another_class_and_the_same_each_time() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    others = shortcuts.of_another_class(labels)
    assert (labels[others] != labels).all()
    assert len(set(others.tolist())) > 25
    assert np.array_equal(others, shortcuts.of_another_class(labels))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    before = pixels.copy()
    changed = shortcuts.with_corner_of(pixels[::-1], pixels, 0.25)
    assert (pixels == before).all()
    assert (changed[0, 24:, 24:] == pixels[1, 24:, 24:]).all()
    changed[:, 24:, 24:] = pixels[:, 24:, 24:]
    assert (changed == pixels).all()


def test_only_the_corner_is_masked_and_only_in_a_copy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    before = pixels.copy()
    masked = shortcuts.mask_corner(pixels, 0.25)
    assert (pixels == before).all()
    changed = (masked != pixels).any(axis=(0, 3))
    assert changed[24:, 24:].all()
    assert not changed[:24].any()
    assert not changed[:, :24].any()
    assert (masked[1, 24:, 24:] == np.median(pixels[1], axis=(0, 1)).astype(np.uint8)).all()
