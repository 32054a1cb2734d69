"""Results on parts of the test split, to find where a model fails: each part by something that is no diagnosis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.evaluation import metrics, nuclei
from pipeline.evaluation.answers import Sample

CORNER = 0.25  # side of the corner where a scale bar would be, as a share
COLUMNS = ["slice", "part", "images", "groups", "accuracy", "low", "high"]


def table(sample: Sample, predicted: np.ndarray) -> pd.DataFrame:
    """Accuracy of each part, `COLUMNS`, with the wider of the bootstrap's and Wilson's intervals.

    A part of one group, or without a mistake, does not vary in resamples; Wilson's knows nothing of groups. Parts
    differ in their classes too: a poor one asks for a look at its images, and proves nothing alone.
    """
    correct = predicted == sample.labels
    rows = []
    for name, parts in _parts(sample).items():
        for part in sorted(set(parts)):
            mine = parts == part
            drawn = sample.weights * mine
            drawn = drawn[drawn.sum(1) > 0]  # a resample may hold none of it
            by_group = metrics.estimate(metrics.mean(correct, drawn))
            by_image = metrics.wilson(int(correct[mine].sum()), int(mine.sum()))
            ends = [min(by_group.low, by_image.low), max(by_group.high, by_image.high)]
            rows.append([name, part, int(mine.sum()), len(set(sample.groups[mine])), by_group.value, *ends])
    return pd.DataFrame(rows, columns=COLUMNS)


def _parts(sample: Sample) -> dict[str, np.ndarray]:
    """The part of each image under each way of slicing: {slice: str [N]}."""
    side = round(CORNER * sample.pixels.shape[1])
    corner = [float(np.median(image) - image[-side:, -side:].min()) for image in sample.pixels]
    return {
        "brightness": _quartiles([brightness for brightness, _, _ in sample.quality]),
        "sharpness": _quartiles([sharpness for _, sharpness, _ in sample.quality]),
        "darkest in the corner": _quartiles(corner),  # a scale bar, or its style
        "nuclei in the field": _quartiles([nuclei.count(image) for image in sample.pixels]),
        "group": np.array([str(group) for group in sample.groups]),
    }


def _quartiles(values: Sequence[float]) -> np.ndarray:
    """`1: 20 to 35` … `4: …`, fewer where values tie."""
    frame = pd.Series(values)
    codes = pd.qcut(frame, 4, labels=False, duplicates="drop").fillna(0).astype(int)
    bounds = frame.groupby(codes).agg(["min", "max"])
    names = {code: f"{code + 1}: {low:.4g} to {high:.4g}" for code, low, high in bounds.itertuples()}
    return codes.map(names).to_numpy()
