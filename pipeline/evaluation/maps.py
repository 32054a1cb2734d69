"""Where a model file looked: the maps of the class that it gives each image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.evaluation.answers import Answers


@dataclass(frozen=True, eq=False)
class Maps:
    """What the model says of N images, and where it looked for that."""

    predicted: np.ndarray  # int [N]
    confidence: np.ndarray  # [N], the probability of that class
    grid: np.ndarray  # [N, h, w], the map of that class; 0 and above
    pixels: np.ndarray  # uint8 [N, S, S, 3]

    @property
    def empty(self) -> np.ndarray:
        """bool [N]: nothing spoke for the class."""
        return np.asarray((self.grid <= 0).all(axis=(1, 2)))

    def some(self, rows: np.ndarray) -> "Maps":
        """Those of some of the images."""
        return Maps(self.predicted[rows], self.confidence[rows], self.grid[rows], self.pixels[rows])


def maps(answers: Answers, pixels: np.ndarray) -> Maps:
    """The maps of uint8 [N, S, S, 3], among a model file's answers to them."""
    grid = answers.cam[np.arange(len(pixels)), answers.predicted]
    return Maps(answers.predicted, answers.confidence.astype(np.float32), grid, pixels)


def enlarged(grid: np.ndarray, side: int) -> np.ndarray:
    """Maps [N, h, w] at [N, side, side], as `leukdetect.explanation` lays them over an image."""
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in grid]
    )
