"""Baselines that never see a cell: a model is worth its margin over these, not over chance."""

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from leukdetect.runtime import cpus
from pipeline import stage

Images = Iterable[np.ndarray]  # uint8 [S, S, 3] each


def predict(
    look: Callable[[Images], np.ndarray], train: Images, labels: np.ndarray, test: Images, seed: int
) -> np.ndarray:
    """The classes of `test` by a random forest that learnt `train`, and sees of images only what `look` gives."""
    return of_features(look(train), labels, look(test), seed)


def of_features(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """The same of what was seen already, [n, K] and [m, K]: [m]."""
    forest = RandomForestClassifier(n_estimators=500, random_state=seed, n_jobs=cpus()).fit(train, labels)
    forest.n_jobs = 1  # several threads add the trees' votes in any order, and so round them otherwise
    return np.asarray(forest.predict(test))


def colours(images: Images) -> np.ndarray:
    """Mean and SD of R, G and B: [N, 6]. They show the stain and the lamp, and no shape.

    On the public four-class set a forest on them is right on about nine images of ten.
    """
    progress = stage.progress(images, "colour-only baseline")
    planes = (np.ascontiguousarray(image.reshape(-1, 3).T) for image in progress)  # many times faster than its axes
    return np.array([np.concatenate([each.mean(1), each.std(1)]) for each in planes])


def corners(images: Images, share: float) -> np.ndarray:
    """The bottom-right corner, where the public four-class set has a scale bar, shrunk to 8×8 pixels: [N, 192].

    `share`: the corner's side, as a share of the image's.
    """
    rows = []
    for image in stage.progress(images, "corner-only baseline"):
        side = round(share * len(image))
        corner = Image.fromarray(np.ascontiguousarray(image[-side:, -side:]))
        rows.append(np.asarray(corner.resize((8, 8), Image.Resampling.BOX)).ravel())
    return np.array(rows)
