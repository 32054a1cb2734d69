"""Augmented views of training images: flips, rotation, zoom, brightness, stain; the scale bar painted over, or another.

A view depends only on the seed, the view's number and the image's hash: any number of workers, in any order, on any
machine, make the same bytes.
"""

import numpy as np
from PIL import Image

from pipeline.network import scale_bar, stain
from pipeline.sections import Augment

_STREAM = 0xA06  # so that no other code draws the same random numbers from the same seed


def view(image: np.ndarray, augment: Augment, seed: int, number: int, sha256: str) -> np.ndarray:
    """View `number`, from 0, of a uint8 RGB image [S, S, 3] whose file has this hash; same shape and type.

    Rotation, zoom and flips are one bilinear resampling; beyond its edges the image is mirrored.
    """
    rng = np.random.default_rng([_STREAM, seed, number, int(sha256[:16], 16)])
    # Always drawn, so that switching one augmentation off leaves the others as they were.
    angle, zoom, light = rng.uniform(-1, 1, 3) * (np.deg2rad(augment.rotation), augment.zoom, augment.brightness)
    flip = rng.integers(0, 2, 2) * 2 - 1 if augment.flip else np.ones(2, int)
    erase = rng.random() < 0.5 or augment.scale_bar > 0  # unless others teach it, it must see the bar to ignore it
    shift, log_ratio = augment.stain * rng.normal(size=(2, 3)) * (stain.SHIFT, stain.LOG_RATIO)
    another_bar = rng.random() < augment.scale_bar
    stained = augment.stain > 0 and number > 0  # the first keeps its own: the images that will be asked about do

    size = image.shape[0]
    if erase and augment.erase_corner > 0:
        side = round(augment.erase_corner * size)
        image = image.copy()
        image[size - side :, size - side :] = np.median(image, axis=(0, 1)).astype(np.uint8)  # bottom right

    if another_bar:
        image = scale_bar.drawn(image, rng)

    if stained:
        image = stain.moved(image, shift, np.exp(log_ratio))

    border = size // 2  # enough for a 45° turn of the corners
    mirrored = Image.fromarray(np.pad(image, ((border, border), (border, border), (0, 0)), mode="reflect"))
    # Maps output pixels to input pixels, about the centres of both.
    cos, sin = np.cos(angle) / (1 + zoom), np.sin(angle) / (1 + zoom)
    a, b, d, e = cos * flip[0], sin * flip[1], -sin * flip[0], cos * flip[1]
    centre, wide = size / 2, size / 2 + border
    turned = mirrored.transform(
        (size, size),
        Image.Transform.AFFINE,
        (a, b, wide - (a + b) * centre, d, e, wide - (d + e) * centre),
        Image.Resampling.BILINEAR,
    )
    return np.clip(np.asarray(turned, np.float32) * (1 + light) + 0.5, 0, 255).astype(np.uint8)
