"""The colours of one session brought to another's: what `benchmarks.levers` changes of images."""

import numpy as np
import pandas as pd

from pipeline.network.stain import from_lab, moved, to_lab
from pipeline.stage import Problem

BACKGROUND = 240  # grey level that every image's background is balanced to; the brightest tenth is background


def reinhard(images: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Every image gets the mean and SD `target` [2, 3] in lαβ."""
    labs = map(to_lab, images)
    scaled = ((lab - lab.mean(0)) / (lab.std(0) + 1e-6) * target[1] + target[0] for lab in labs)
    return np.stack([from_lab(lab, images.shape[1:]) for lab in scaled])


def moves(colours: np.ndarray, rows: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """For each image, what parts two blocks of a class drawn at random: their difference in mean, ratio in SD.

    Of one class, so that what is drawn is a session's and no class's. `colours` and the result: [N, 2, 3], in lαβ.
    """
    of_class = _blocks(colours, rows)
    found = np.empty_like(colours)
    for move in found:
        blocks = of_class[rng.integers(len(of_class))]
        one, other = blocks[rng.choice(len(blocks), 2, replace=False)]
        move[:] = other[0] - one[0], other[1] / one[1]
    return found


def spread(colours: np.ndarray, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """SD [3] of the differences in mean that `moves` draws, and of the logs of its ratios."""
    of_class = _blocks(colours, rows)
    means = np.mean([2 * each[:, 0].var(0, ddof=1) for each in of_class], axis=0)
    logs = np.mean([2 * np.log(each[:, 1]).var(0, ddof=1) for each in of_class], axis=0)
    return np.sqrt(means), np.sqrt(logs)


def _blocks(colours: np.ndarray, rows: pd.DataFrame) -> list[np.ndarray]:
    """Each class's blocks' mean colours, [blocks, 2, 3]."""
    return [
        np.stack([colours[block.index].mean(0) for _, block in mine.groupby("group")])
        for _, mine in rows.groupby("label")
    ]


def drawn(images: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Every image moved in lαβ by its own of `moves` [N, 2, 3]."""
    return np.stack([moved(image, shift, ratio) for image, (shift, ratio) in zip(images, moves, strict=True)])


Stains = tuple[np.ndarray, np.ndarray]  # unit vectors [2, 3], and each one's strength [2]


def density(images: np.ndarray) -> np.ndarray:
    return np.asarray(-np.log((images.reshape(-1, 3) + 1.0) / 256))


def found(densities: np.ndarray) -> Stains | None:
    """Two stains (Macenko et al. 2009), a strength being the 99th percentile; None where next to nothing is stained."""
    stained = densities[(densities > 0.15).all(1)]
    if len(stained) < 100:
        return None
    plane = np.linalg.eigh(np.cov(stained.T))[1][:, 1:]
    plane = plane * np.where(plane.sum(0) < 0, -1, 1)
    angles = np.arctan2(*(stained @ plane).T)
    ends = [plane @ [np.sin(a), np.cos(a)] for a in np.quantile(angles, [0.01, 0.99])]
    vectors = np.array(sorted(ends, key=lambda end: -end[0]))
    strengths = np.quantile(np.linalg.lstsq(vectors.T, densities.T, rcond=None)[0], 0.99, axis=1)
    return vectors, np.maximum(strengths, 1e-3)


def macenko(images: np.ndarray, target: Stains | None) -> np.ndarray:
    """Every image gets the stains `target`; those without stain stay as they are. Raises Problem if there is none."""
    if target is None:
        raise Problem("the images hold no stain to normalise to")
    vectors, strengths = target
    made = images.copy()
    for image in made:
        densities = density(image)
        if own := found(densities):
            amounts = np.linalg.lstsq(own[0].T, densities.T, rcond=None)[0] * (strengths / own[1])[:, None]
            image[:] = np.clip(256 * np.exp(-(vectors.T @ amounts).T) - 0.5, 0, 255).reshape(image.shape)
    return made


def white(images: np.ndarray) -> np.ndarray:
    """Every image with its background at `BACKGROUND` in each channel."""
    bright = np.quantile(images, 0.9, axis=(1, 2), keepdims=True)
    return np.asarray(np.clip(images * (BACKGROUND / np.maximum(bright, 1)) + 0.5, 0, 255), np.uint8)
