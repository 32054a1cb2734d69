"""The shortcut audit: would the model answer as it does without looking at a cell? A section of reports/metrics.json.

Each experiment changes the test images, and asks the model again. `MEANING` says how to read each number.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.evaluation import metrics, nuclei
from pipeline.evaluation.answers import Sample
from pipeline.evaluation.classification import Hits
from pipeline.evaluation.metrics import Estimate, Section

MEANING = {  # title, and how to read the number
    # Baselines: predictions of something that never sees a cell.
    "colour_only": (
        "Colour alone",
        "A random forest on the mean and SD of red, green and blue. The model is worth its margin over this.",
    ),
    "corner_only": (
        "Corner alone",
        "A random forest on the corner where a scale bar would be. Above chance, the corner tells the class.",
    ),
    # Experiments: the model's predictions of changed images.
    "corner_masked": (
        "Corner painted over",
        "Should change nothing. A drop means that the model reads the scale bar or its style.",
    ),
    "grey": (
        "Grey images",
        "How much rests on colour. A drop is no fault by itself; to chance would mean that the stain decides.",
    ),
    "background_median": (
        "Background painted over",
        "Only cells are left, on the background's own median colour. What is lost had rested on the background.",
    ),
    "cells_masked": (
        "Cells painted over",
        "Only background is left. Should fall to chance: what is above it is read off something that is no cell.",
    ),
}


class Changed(Section):
    """The result of an experiment; `changed`: the share of images that got another class."""

    balanced_accuracy: Estimate
    changed: Estimate


class Shortcuts(Section):
    """The audit, without the colour-only baseline: that has a section of its own."""

    corner_only: Hits
    corner_masked: Changed
    grey: Changed
    background_median: Changed
    cells_masked: Changed


def measure(
    predict: Callable[[np.ndarray], np.ndarray], sample: Sample, before: np.ndarray, corner: float
) -> dict[str, Changed]:
    """Each experiment's result, by name.

    Args:
        predict: uint8 [N, S, S, 3] to classes [N].
        before: its predictions for the sample as it is, [N].
        corner: the masked corner's side, as a share.
    """
    result = {}
    for name, changed in experiments(sample.pixels, corner):
        predicted = predict(changed)
        result[name] = Changed(
            balanced_accuracy=metrics.estimate(metrics.balanced_accuracy(sample.labels, predicted, sample.weights)),
            changed=metrics.estimate_mean(predicted != before, sample.weights),
        )
    return result


def experiments(pixels: np.ndarray, corner: float) -> Iterator[tuple[str, np.ndarray]]:
    """Changed copies of uint8 [N, S, S, 3], one after the other, since together they might not fit in memory."""
    yield "corner_masked", mask_corner(pixels, corner)
    yield "grey", grey(pixels)
    cells = nuclei.cells(pixels)
    yield "background_median", _paint(pixels, ~cells, of=~cells)
    yield "cells_masked", _paint(pixels, cells, of=~cells)


def mask_corner(pixels: np.ndarray, share: float) -> np.ndarray:
    """A copy of [N, S, S, 3] with the bottom-right `share` of each side painted in the image's own median colour."""
    masked = pixels.copy()
    side = round(share * pixels.shape[1])
    for image in masked:
        image[-side:, -side:] = np.median(image, axis=(0, 1))
    return masked


def grey(pixels: np.ndarray) -> np.ndarray:
    """A copy of [N, S, S, 3] with every channel the luma (ITU-R BT.601)."""
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(np.rint(luma).astype(np.uint8)[..., None], 3, axis=3)


def _paint(pixels: np.ndarray, where: np.ndarray, of: np.ndarray) -> np.ndarray:
    """A copy with `where`, bool [N, S, S], in each image's median colour of the area `of`."""
    painted = pixels.copy()
    for image, area, source in zip(painted, where, of, strict=True):
        image[area] = np.median(image[source], axis=0)
    return painted
