"""Augmented views of training images: flips, rotation, zoom, brightness, and the scale bar's corner painted over.

A view depends on the seed, the view's number and the image's own hash alone: any number of workers, in
any order, on any machine, makes the same bytes.
"""

import numpy as np
from PIL import Image

from pipeline.params import Augment

_STREAM = 0xA06  # keeps these random numbers apart from everybody else's with the same seed


def view(image: np.ndarray, augment: Augment, seed: int, number: int, sha256: str) -> np.ndarray:
    """One augmented view of a uint8 RGB image [S, S, 3], same shape and type.

    Geometry is one bilinear resampling (rotation, zoom and flips composed); what comes into the frame
    from outside is the image mirrored at its edges.

    Args:
        number: which view, 0 and up.
        sha256: the image file's hash, hex; it names the image to the random numbers.
    """
    rng = np.random.default_rng([_STREAM, seed, number, int(sha256[:16], 16)])
    # Always drawn, so that switching one augmentation off leaves the others as they were.
    angle, zoom, light = rng.uniform(-1, 1, 3) * (np.deg2rad(augment.rotation), augment.zoom, augment.brightness)
    flip = rng.integers(0, 2, 2) * 2 - 1 if augment.flip else np.ones(2, int)
    erase = rng.random() < 0.5  # the model must learn to do without the bar, and not to mind it

    size = image.shape[0]
    if erase and augment.erase_corner > 0:
        side = round(augment.erase_corner * size)
        image = image.copy()
        image[size - side :, size - side :] = np.median(image, axis=(0, 1)).astype(np.uint8)  # bottom right

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
