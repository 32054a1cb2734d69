"""The test split, and what a model file says of it: asked once, read by every section of reports/metrics.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from leukdetect import contract, images
from leukdetect.decision import ReasonCode, decide
from pipeline.data.prepared import PREPARED
from pipeline.evaluation import metrics
from pipeline.model_file.onnx_model import OnnxModel
from pipeline.stage import Problem


@dataclass(frozen=True, eq=False)
class Images:
    """N images as the model takes them."""

    pixels: np.ndarray  # uint8 [N, S, S, 3]

    @cached_property
    def quality(self) -> list[tuple[float, float, float]]:
        """Brightness, sharpness and stain of each."""
        return [(*images.quality(each), images.stain(each)) for each in self.pixels]


@dataclass(frozen=True, eq=False)
class Sample(Images):
    """Held-out images, and how they are drawn again for intervals."""

    labels: np.ndarray  # int [N]
    groups: np.ndarray  # [N], the patient or session
    weights: np.ndarray  # [1 + R, N], of `metrics.group_weights`


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model file says of N images, read with its own thresholds as the server does."""

    probabilities: np.ndarray  # float64 [N, C]
    unlikeness: np.ndarray  # [N]
    embedding: np.ndarray  # [N, D]
    cam: np.ndarray  # [N, C, h, w]
    p_malignant: np.ndarray  # [N]
    malignant: np.ndarray  # bool [N], called so at the operating point
    reasons: Sequence[set[ReasonCode]]  # N, why the server would refer it; empty: it would not

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


def sample(pixels: np.ndarray, rows: pd.DataFrame, resamples: int, seed: int) -> Sample:
    """Images and their rows of split.csv, with so many resamples of their groups."""
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    return Sample(pixels, labels, groups, metrics.group_weights(labels, groups, resamples, seed))


def check(rows: pd.DataFrame, prepared: np.ndarray, model: OnnxModel, keys: Sequence[str]) -> None:
    """Raises Problem if the prepared images do not fit the model, or the test split's rows lack a class."""
    size = model.contract.decode.size
    if prepared.shape[1:] != (size, size, 3):
        raise Problem(
            f"{PREPARED}/images.npy holds images of {prepared.shape[1]} px, but {model.path} takes {size} px; "
            "`dvc repro export` brings them together"
        )
    absent = [key for key in keys if key not in set(rows["class"])]
    if absent:
        raise Problem(
            f"the test split has no image of {', '.join(absent)}, so nothing can be said of it. Add data, or change "
            "seed or prepare.fractions in params.yaml; then `dvc repro`"
        )


def answer(model: OnnxModel, asked: Images) -> Answers:
    """Runs images through a model file."""
    outputs = model.predict(asked.pixels, contract.OUTPUTS)
    said = [
        decide(p, float(u), *quality, model.contract)
        for p, u, quality in zip(outputs["probabilities"], outputs["unlikeness"], asked.quality, strict=True)
    ]
    probabilities = outputs.pop("probabilities").astype(np.float64)
    p_malignant = probabilities[:, [c.malignant for c in model.contract.classes]].sum(1)
    return Answers(
        probabilities=probabilities,
        p_malignant=p_malignant,
        malignant=p_malignant >= model.contract.thresholds.malignant,
        reasons=[{reason.code for reason in each.reasons} for each in said],
        **outputs,
    )
