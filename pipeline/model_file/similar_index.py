"""Makes the index of similar cases that a model file carries: see `leukdetect.similar`."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from leukdetect.drift import unit_length
from leukdetect.similar import Index

MOST = 512  # images, the same number of each class; with thumbnails about half a megabyte
COMPONENTS = 32  # directions
SIDE = 64  # pixels of a thumbnail
QUALITY = 75  # of its WebP: no header of 600 bytes, as JPEG has
ID = 12  # hex digits: the chance that any two of 100,000 files share them is 1 in 50,000


def choose(labels: np.ndarray, seed: int, most: int = MOST) -> np.ndarray:
    """Rows of images, of classes [n]: all, or so many by chance, evenly from all classes; for the index, or a study."""
    rng = np.random.default_rng(seed)
    turns = np.empty(len(labels), int)  # an image's place in the queue of its class
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        turns[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, turns))[:most])


def fit(embedding: np.ndarray, labels: np.ndarray, sha256: Sequence[str], pixels: np.ndarray | None) -> Index:
    """The index of n images, from this model file's embedding of them [n, D] and their classes [n].

    `pixels` uint8 [n, S, S, 3] become thumbnails; None where the data's licence forbids to pass them on.
    """
    unit = unit_length(embedding)
    mean = unit.mean(axis=0)
    _, _, directions = np.linalg.svd(unit - mean, full_matrices=False)
    directions = directions[:COMPONENTS].T
    return Index(
        mean=mean,
        directions=directions,
        places=(unit - mean) @ directions,
        classes=labels,
        ids=[each[:ID] for each in sha256],
        thumbnails=None if pixels is None else [_thumbnail(image) for image in pixels],
    )


def _thumbnail(image: np.ndarray) -> bytes:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()
