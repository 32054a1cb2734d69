"""What the trainings of `pipeline.fold` said: every image once, by a model that saw no group of its own.

Their files have no temperature and an unscaled unlikeness, so that the limits can be fitted to all of it, or to all but
one fold.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import softmax

from leukdetect.contract import OUTPUTS
from pipeline import stage
from pipeline.data import folds
from pipeline.params import Params


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Answers to the rows of split.csv, in their order; each fold's model has features of its own."""

    fold: np.ndarray  # int [N], which one held the image out
    outputs: dict[str, np.ndarray]  # [N, …] for each of the contract's OUTPUTS
    seen: list[np.ndarray]  # embeddings [m, D] of images that fold's model learnt from

    @property
    def logits(self) -> np.ndarray:
        """[N, C], but for a constant that a softmax takes out again."""
        return np.log(np.maximum(self.outputs["probabilities"].astype(np.float64), 1e-30))

    def calibrated(self, temperature: float | np.ndarray, scale: float | np.ndarray) -> "OutOfFold":
        """The same with a temperature (one, or [N, 1]) and unlikeness in units of a scale (one, or [N])."""
        probabilities = softmax(self.logits / temperature, axis=1).astype(np.float32)
        return replace(
            self,
            outputs=self.outputs
            | {"probabilities": probabilities, "unlikeness": self.outputs["unlikeness"] / np.float32(scale)},
        )


def read(recipe: Params, frame: pd.DataFrame, precision: str, seed: int | None = None) -> OutOfFold:
    """The answers of one seed's trainings, the first one's unless said, by their FP32 or INT8 files.

    Args:
        frame: all rows of split.csv.

    Raises:
        Problem: a fold's answers are missing, or of other images.
    """
    seed = recipe.estimate.seeds[0] if seed is None else seed
    sides, fold, seen = folds.read(frame), np.full(len(frame), -1), []
    outputs: dict[str, np.ndarray] = {}
    for number in recipe.estimate.folds:
        path = stage.require(folds.folder(number, seed) / f"{precision}.npz", f"fold@{number}-{seed}")
        with np.load(path) as arrays:
            rows = arrays["rows"]
            if rows.tolist() != frame.index[sides[str(number)] == "test"].tolist():
                raise stage.Problem(f"{path} is of other images; `dvc repro` makes it anew")
            fold[rows] = number
            seen.append(arrays["seen"])
            for name in OUTPUTS:
                whole = outputs.setdefault(name, np.empty((len(frame), *arrays[name].shape[1:]), np.float32))
                whole[rows] = arrays[name]
    return OutOfFold(fold, outputs, seen)
