"""Photographs a rendered slide: light, focus, camera. `smears` says which arithmetic is allowed."""

from math import sqrt

import numpy as np

from pipeline.data.smear_slide import Draws, polar

SUPERSAMPLING = 2  # the slide's pixels along one of the photograph's

# Optical density of a unit of stain in R, G, B. Chromatin holds both: the Romanowsky effect makes it purple.
AZURE = (0.78, 0.60, 0.24)
EOSIN = (0.14, 0.72, 0.58)

# Grey levels in R, G, B that the camera aims for, whatever is in the frame.
MEAN = (188, 168, 196)
SPREAD = (42, 51, 33)


def photograph(stains: np.ndarray, sitting: Draws, cell: Draws) -> np.ndarray:
    """Stains [2, side, side] under the session's lamp, focus and camera: uint8 [size, size, 3], size = side ÷ 2."""
    azure, eosin = stains
    side = len(azure)
    size = side // SUPERSAMPLING
    azure_strength = sitting.between(0.8, 1.25)
    eosin_strength = azure_strength * sitting.between(0.75, 1.3)
    lamp_x, lamp_y = sitting.direction()
    distance, _, _ = polar(side, 0.25 * lamp_x, 0.25 * lamp_y)
    light = 1 - sitting.between(0.02, 0.12) * distance * distance  # vignette
    defocus = sitting.between(0.3, 0.8) * cell.between(0.8, 1.25) * size / 80  # σ in pixels

    exposure = 8 * sitting.bell() + 4 * cell.bell()
    contrast = 1 + 0.10 * sitting.bell() + 0.06 * cell.bell()

    image = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        density = azure_strength * AZURE[channel] * (1 + 0.08 * sitting.bell()) * azure
        density += eosin_strength * EOSIN[channel] * (1 + 0.08 * sitting.bell()) * eosin
        passed = blur(shrink(light * transmitted(density)), defocus)
        mean = MEAN[channel] + exposure + 6 * sitting.bell() + 3 * cell.bell()  # the channel's own part: white balance
        spread = SPREAD[channel] * contrast * (1 + 0.07 * sitting.bell() + 0.04 * cell.bell())
        sensor = 2.5 * (cell.grid(size, size) + cell.grid(size, size) + cell.grid(size, size))
        image[..., channel] = np.clip(np.rint(expose(passed, mean, spread) + sensor), 0, 255)
    return image


def transmitted(density: np.ndarray) -> np.ndarray:
    """Beer–Lambert, exp(-density), as (1 - density ÷ 256)^256 by squaring: at most 2 % off up to a density of 3."""
    passed = 1 - np.minimum(density, 6) / 256
    for _ in range(8):
        passed = passed * passed
    return passed


def expose(passed: np.ndarray, mean: float, spread: float) -> np.ndarray:
    """Automatic exposure and contrast: grey levels with this mean and standard deviation."""
    counts = np.rint(passed * 65535).astype(np.int64)  # integers: their sums are exact in any order
    average = int(counts.sum()) / counts.size
    variance = int((counts * counts).sum()) / counts.size - average * average
    return (counts - average) * (spread / sqrt(max(variance, 1.0))) + mean


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Nearly Gaussian: three-tap kernels one after the other, whose variances add up to sigma², in pixels."""
    passes = int(2 * sigma * sigma) + 1
    tap = sigma * sigma / (2 * passes)
    for _ in range(passes):
        wide = np.pad(image, ((1, 1), (0, 0)), mode="edge")
        image = (1 - 2 * tap) * image + tap * (wide[:-2] + wide[2:])
        wide = np.pad(image, ((0, 0), (1, 1)), mode="edge")
        image = (1 - 2 * tap) * image + tap * (wide[:, :-2] + wide[:, 2:])
    return image


def shrink(image: np.ndarray) -> np.ndarray:
    """Mean of each 2 × 2 pixels (SUPERSAMPLING), added up in one order."""
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4
