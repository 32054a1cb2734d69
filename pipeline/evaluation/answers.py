"""What is said of the held-out images: asked once, read by every section of reports/metrics.json."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from leukdetect import contract, images
from leukdetect.contract import Contract
from leukdetect.decision import ReasonCode, decide
from pipeline.data import prepared
from pipeline.evaluation import metrics, nuclei
from pipeline.model_file.onnx_model import OnnxModel
from pipeline.stage import Problem, progress


@dataclass(frozen=True, eq=False)
class Sample:
    """Held-out images, and the resamples of their groups that intervals are made of."""

    pixels: np.ndarray  # uint8 [N, S, S, 3]
    labels: np.ndarray  # int [N]
    groups: np.ndarray  # [N], of `prepared.numbers`
    weights: np.ndarray  # [1 + R, N], of `metrics.group_weights`

    @cached_property
    def stained(self) -> np.ndarray:
        """Bool [N, S, S]: each image's nuclei."""
        return np.stack([nuclei.nuclei(image) for image in progress(self.pixels, "nuclei")])

    def only(self, rows: np.ndarray) -> "Sample":
        """Some of the images: bool [N], or their places."""
        return Sample(self.pixels[rows], self.labels[rows], self.groups[rows], self.weights[:, rows])


@dataclass(frozen=True, eq=False)
class Answers:
    """A model file's outputs for N images, and what the server would decide on them with the file's own thresholds."""

    probabilities: np.ndarray  # float64 [N, C]
    unlikeness: np.ndarray  # [N]
    embedding: np.ndarray  # [N, D]
    cam: np.ndarray  # [N, C, h, w]
    p_malignant: np.ndarray | None  # [N]; None where all classes are malignant, or none
    malignant: np.ndarray | None  # bool [N], called malignant at the operating point
    reasons: Sequence[set[ReasonCode]]  # N, why the server would refer the image; empty if it would not

    @cached_property
    def predicted(self) -> np.ndarray:
        """Int [N]."""
        return self.probabilities.argmax(1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The highest probability: [N]."""
        return self.probabilities.max(1)

    @cached_property
    def reported(self) -> np.ndarray:
        """Bool [N]: not referred."""
        return np.array([not each for each in self.reasons])

    def only(self, rows: np.ndarray) -> "Answers":
        """Those to some of the images: bool [N]."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        few = {name: value[rows] for name, value in whole.items() if isinstance(value, np.ndarray)}
        return replace(self, **few, reasons=[self.reasons[row] for row in np.flatnonzero(rows).tolist()])


class Maps(NamedTuple):
    """Where the model looked in N images for the class that it gives each."""

    predicted: np.ndarray  # int [N]
    grid: np.ndarray  # [N, h, w], the map of that class; 0 and above
    pixels: np.ndarray  # uint8 [N, S, S, 3]


def sample(pixels: np.ndarray, rows: pd.DataFrame, resamples: int, seed: int) -> Sample:
    """Images with the labels and groups of their rows in split.csv."""
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    return Sample(
        pixels, labels, prepared.numbers(rows).to_numpy(), metrics.group_weights(labels, groups, resamples, seed)
    )


def check(rows: pd.DataFrame, stored: np.ndarray, model: OnnxModel, keys: Sequence[str]) -> None:
    """Raises Problem if the prepared images do not fit the model, or the test split's rows lack a class."""
    size = model.contract.decode.size
    if stored.shape[1:] != (size, size, 3):
        raise Problem(
            f"{prepared.PREPARED}/images.npy holds images of {stored.shape[1]} px, but {model.path} takes {size} px; "
            "`dvc repro export` brings them together"
        )
    if absent := [key for key in keys if key not in set(rows["class"])]:
        raise Problem(
            f"the test split has no image of {', '.join(absent)}, so nothing can be said of it. Add data, or change "
            "seed or prepare.fractions in params.yaml; then `dvc repro`"
        )


def answer(model: OnnxModel, pixels: np.ndarray) -> Answers:
    """Runs uint8 [N, S, S, 3] through a model file, and decides on each image as the server does."""
    return decided(model.predict(pixels, contract.OUTPUTS), pixels, [model.contract] * len(pixels))


def decided(outputs: dict[str, np.ndarray], pixels: np.ndarray, limits: Sequence[Contract]) -> Answers:
    """What the server would decide on images uint8 [N, S, S, 3] from a file's OUTPUTS, with each image's own limits."""
    decisions = [
        decide(p, float(u), *images.quality(image), images.stain(image), mine)
        for p, u, image, mine in zip(outputs["probabilities"], outputs["unlikeness"], pixels, limits, strict=True)
    ]
    probabilities = outputs["probabilities"].astype(np.float64)
    p_malignant = malignant = None
    if limits[0].thresholds.malignant is not None:
        p_malignant = probabilities[:, [c.malignant for c in limits[0].classes]].sum(1)
        malignant = p_malignant >= np.array([each.thresholds.malignant for each in limits])
    return Answers(
        p_malignant=p_malignant,
        malignant=malignant,
        reasons=[{reason.code for reason in each.reasons} for each in decisions],
        **(outputs | {"probabilities": probabilities}),
    )


def maps(answers: Answers, pixels: np.ndarray) -> Maps:
    """The maps among a model file's answers to uint8 [N, S, S, 3]."""
    grid = answers.cam[np.arange(len(pixels)), answers.predicted]
    return Maps(answers.predicted, grid, pixels)


def enlarged(grid: np.ndarray, side: int) -> np.ndarray:
    """Maps [N, h, w] at [N, side, side], as `leukdetect.explanation` lays them over an image."""
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in grid]
    )
