"""The test split, and what a model file says of it: asked once, read by every section of reports/metrics.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leukdetect import contract, images
from leukdetect.decision import ReasonCode, decide
from pipeline.evaluation import metrics
from pipeline.model_file.onnx_model import OnnxModel


@dataclass(frozen=True, eq=False)
class Sample:
    """N held-out images, and how they are drawn again for intervals."""

    pixels: np.ndarray  # uint8 [N, S, S, 3]
    labels: np.ndarray  # int [N]
    groups: np.ndarray  # [N], the patient or session
    weights: np.ndarray  # [1 + R, N], of `metrics.group_weights`

    @cached_property
    def quality(self) -> np.ndarray:
        """Brightness, sharpness and stain of each image: [N, 3]."""
        return quality(self.pixels)


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


def sample(pixels: np.ndarray, labels: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> Sample:
    """Images with so many resamples of their groups."""
    return Sample(pixels, labels, groups, metrics.group_weights(labels, groups, resamples, seed))


def quality(pixels: np.ndarray) -> np.ndarray:
    """Brightness, sharpness and stain of uint8 [N, S, S, 3]: [N, 3]."""
    return np.array([(*images.quality(image), images.stain(image)) for image in pixels])


def answer(model: OnnxModel, pixels: np.ndarray, looks: np.ndarray) -> Answers:
    """Runs uint8 [N, S, S, 3], of that `quality`, through a model file."""
    outputs = model.predict(pixels, contract.OUTPUTS)
    said = [
        decide(p, float(u), brightness, sharpness, stain, model.contract)
        for p, u, (brightness, sharpness, stain) in zip(
            outputs["probabilities"], outputs["unlikeness"], looks.tolist(), strict=True
        )
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
