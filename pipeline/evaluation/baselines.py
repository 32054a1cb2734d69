"""What can be had without looking at a cell: the baselines that stand beside every result."""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from pipeline import stage


def colour_only(
    train_images: Iterable[np.ndarray], train_labels: np.ndarray, test_images: Iterable[np.ndarray], seed: int
) -> np.ndarray:
    """Predicts the class from six numbers an image, so it knows the stain and the lamp but no shape.

    On the public four-class set such a forest is right on about nine images of ten: a model is worth
    its margin over this, not over chance.

    Args:
        train_images, test_images: uint8 [S, S, 3] each.
        train_labels: [N].
        seed: of the forest.

    Returns:
        The predicted labels of `test_images`.
    """
    return _forest(_colours(train_images), train_labels, _colours(test_images), seed)


def corner_only(
    train_images: Iterable[np.ndarray],
    train_labels: np.ndarray,
    test_images: Iterable[np.ndarray],
    corner: float,
    seed: int,
) -> np.ndarray:
    """Predicts the class from 8×8 pixels of the bottom-right corner, where the public four-class set has a scale bar.

    Args:
        corner: its side, as a share of the image's; else as `colour_only`.
    """
    return _forest(_corners(train_images, corner), train_labels, _corners(test_images, corner), seed)


def _forest(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    forest = RandomForestClassifier(n_estimators=500, random_state=seed, n_jobs=-1)
    return np.asarray(forest.fit(train, labels).predict(test))


def _corners(images: Iterable[np.ndarray], share: float) -> np.ndarray:
    """The corner, shrunk to 8×8 pixels: [N, 192]."""
    rows = []
    for image in stage.progress(images, "corner-only baseline"):
        side = round(share * len(image))
        corner = Image.fromarray(np.ascontiguousarray(image[-side:, -side:]))
        rows.append(np.asarray(corner.resize((8, 8), Image.Resampling.BOX)).ravel())
    return np.array(rows)


def _colours(images: Iterable[np.ndarray]) -> np.ndarray:
    """Mean and SD of R, G and B: [N, 6]."""
    return np.array(
        [
            np.concatenate([image.mean((0, 1)), image.std((0, 1))])
            for image in stage.progress(images, "colour-only baseline")
        ]
    )
