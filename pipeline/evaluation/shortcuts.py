"""The shortcut audit: would the model answer as it does without looking at a cell? A section of reports/metrics.json.

Each experiment changes the test images, and asks the model again. `MEANING` says how to read each number.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.evaluation import metrics, nuclei
from pipeline.evaluation.answers import Sample
from pipeline.evaluation.classification import Hits
from pipeline.evaluation.metrics import Estimate, Section
from pipeline.model_file.onnx_model import Alter

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
    "corner_of_another": (
        "Another class's corner",
        "In place of its own. A drop means that the bar's style tells the class, or, now and then, a cell beside it.",
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
    drop: Annotated[Estimate, Field(description="of balanced accuracy, from the same images as they are")]
    changed: Estimate


class Shortcuts(Section):
    """The audit, without the colour-only baseline: that has a section of its own."""

    corner_only: Hits
    corner_masked: Changed
    corner_of_another: Changed
    grey: Changed
    background_median: Changed
    cells_masked: Changed


def ask(name: str, predict: Callable[[Alter], np.ndarray], alter: Alter, sample: Sample, before: np.ndarray) -> Changed:
    """One experiment's result.

    Args:
        predict: the classes [N] of all images, altered.
        before: of the sample as it is, [N].
    """
    print(f"asking again: {MEANING[name][0].lower()}", flush=True)
    predicted = predict(alter)
    return Changed(
        balanced_accuracy=metrics.estimate(metrics.balanced_accuracy(sample.labels, predicted, sample.weights)),
        drop=metrics.paired_bootstrap(sample.labels, before, predicted, sample.weights),
        changed=metrics.estimate_mean(predicted != before, sample.weights),
    )


def experiments(sample: Sample, corner: float) -> dict[str, Alter]:
    """What each experiment makes of images, by name; `corner`: the masked corner's side, as a share."""
    pixels, cells = sample.pixels, nuclei.cells(sample.stained)
    others = of_another_class(sample.labels)
    return {
        "corner_masked": lambda rows: mask_corner(pixels[rows], corner),
        "corner_of_another": lambda rows: with_corner_of(pixels[others[rows]], pixels[rows], corner),
        "grey": lambda rows: grey(pixels[rows]),
        "background_median": lambda rows: _paint(pixels[rows], ~cells[rows], of=~cells[rows]),
        "cells_masked": lambda rows: _paint(pixels[rows], cells[rows], of=~cells[rows]),
    }


def mask_corner(pixels: np.ndarray, share: float) -> np.ndarray:
    """A copy of [N, S, S, 3] with the bottom-right `share` of each side painted in the image's own median colour."""
    masked = pixels.copy()
    side = round(share * pixels.shape[1])
    for image in masked:
        image[-side:, -side:] = np.median(image, axis=(0, 1))
    return masked


def of_another_class(labels: np.ndarray) -> np.ndarray:
    """For each of N images one of another class, drawn at random but always the same: their places, int [N]."""
    rng = np.random.default_rng(0)
    found = np.empty(len(labels), int)
    for label in np.unique(labels):
        found[labels == label] = rng.choice(np.flatnonzero(labels != label), (labels == label).sum())
    return found


def with_corner_of(others: np.ndarray, pixels: np.ndarray, share: float) -> np.ndarray:
    """A copy of `pixels` [N, S, S, 3] with the bottom-right `share` of each side from the other image."""
    changed, side = pixels.copy(), round(share * pixels.shape[1])
    changed[:, -side:, -side:] = others[:, -side:, -side:]
    return changed


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
