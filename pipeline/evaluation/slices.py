"""Accuracy on parts of the held-out images, to find where a model fails. No part is made by a diagnosis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from leukdetect import images
from pipeline.evaluation import metrics, nuclei
from pipeline.evaluation.answers import Sample

CORNER = 0.25  # side of the corner where a scale bar would be, as a share
COLUMNS = ["slice", "part", "images", "groups", "accuracy", "low", "high"]


def table(sample: Sample, predicted: np.ndarray) -> pd.DataFrame:
    """Accuracy of each part, `COLUMNS`. The interval spans the bootstrap's and Wilson's.

    The bootstrap has no width for a part of one group or without a mistake, and Wilson ignores groups. Parts differ in
    their classes too: a poor part is a reason to look at its images, and proves nothing alone.
    """
    correct = predicted == sample.labels
    side = round(CORNER * sample.pixels.shape[1])
    brightness, sharpness = np.transpose([images.quality(image) for image in sample.pixels])
    corner = [float(np.median(image) - image[-side:, -side:].min()) for image in sample.pixels]
    ways = {
        "brightness": _quartiles(brightness),
        "sharpness": _quartiles(sharpness),
        "darkest in the corner": _quartiles(corner),  # a scale bar, or its style
        "nuclei in the field": _quartiles([nuclei.count(each) for each in sample.stained]),
        "group": sample.groups,
    }
    rows = []
    for name, parts in ways.items():
        for part in sorted(set(parts)):
            mine = parts == part
            drawn = sample.weights * mine
            drawn = drawn[drawn.sum(1) > 0]  # a resample may hold none of it
            by_group = metrics.estimate_mean(correct, drawn)
            by_image = metrics.wilson(int(correct[mine].sum()), int(mine.sum()))
            ends = [min(by_group.low, by_image.low), max(by_group.high, by_image.high)]
            rows.append([name, part, int(mine.sum()), len(set(sample.groups[mine])), by_group.value, *ends])
    return pd.DataFrame(rows, columns=COLUMNS)


def _quartiles(values: Sequence[float]) -> np.ndarray:
    """The part of each value: `1: 20 to 35` … `4: …`, fewer where values tie."""
    frame = pd.Series(values)
    codes = pd.qcut(frame, 4, labels=False, duplicates="drop").fillna(0).astype(int)
    bounds = frame.groupby(codes).agg(["min", "max"])
    names = {code: f"{code + 1}: {low:.4g} to {high:.4g}" for code, low, high in bounds.itertuples()}
    return codes.map(names).to_numpy()
