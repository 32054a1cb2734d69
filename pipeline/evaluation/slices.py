"""Results on parts of the test split, to find where a model fails: each part by something that is no diagnosis."""

import numpy as np
import pandas as pd

from leukdetect import images
from pipeline.evaluation import metrics, nuclei

CORNER = 0.25  # side of the corner where a scale bar would be, as a share
COLUMNS = ["slice", "part", "images", "groups", "accuracy", "low", "high"]


def table(
    pixels: np.ndarray, groups: np.ndarray, labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray
) -> pd.DataFrame:
    """Accuracy of each part, `COLUMNS`, with the wider of the bootstrap's and Wilson's intervals.

    A part of one group, or without a mistake, does not vary in resamples; Wilson's knows nothing of groups. Parts
    differ in their classes too: a poor one asks for a look at its images, and proves nothing alone.

    Args:
        pixels: uint8 [N, S, S, 3]; groups, labels, predicted: [N].
        weights: [R, N], from `metrics.group_weights`.
    """
    correct = predicted == labels
    rows = []
    for name, parts in _parts(pixels, groups).items():
        for part in sorted(set(parts)):
            mine = parts == part
            drawn = weights * mine
            drawn = drawn[drawn.sum(1) > 0]  # a resample may hold none of it
            by_group = metrics.estimate(metrics.mean(correct, drawn))
            by_image = metrics.wilson(int(correct[mine].sum()), int(mine.sum()))
            ends = [min(by_group.low, by_image.low), max(by_group.high, by_image.high)]
            rows.append([name, part, int(mine.sum()), len(set(groups[mine])), by_group.value, *ends])
    return pd.DataFrame(rows, columns=COLUMNS)


def _parts(pixels: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """The part of each image under each way of slicing: {slice: str [N]}."""
    side = round(CORNER * pixels.shape[1])
    corner = [float(np.median(image) - image[-side:, -side:].min()) for image in pixels]
    return {
        "brightness": _quartiles([images.brightness(image) for image in pixels]),
        "sharpness": _quartiles([images.sharpness(image) for image in pixels]),
        "darkest in the corner": _quartiles(corner),  # a scale bar, or its style
        "nuclei in the field": _quartiles([nuclei.count(image) for image in pixels]),
        "group": np.array([str(group) for group in groups]),
    }


def _quartiles(values: list[float] | list[int]) -> np.ndarray:
    """`1: 20 to 35` … `4: …`, fewer where values tie."""
    frame = pd.Series(values)
    codes = pd.qcut(frame, 4, labels=False, duplicates="drop").fillna(0).astype(int)
    bounds = frame.groupby(codes).agg(["min", "max"])
    names = {code: f"{code + 1}: {low:.4g} to {high:.4g}" for code, low, high in bounds.itertuples()}
    return codes.map(names).to_numpy()
