"""The answer to one image: what the library returns, the server sends and a scoring job writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leukdetect.contract import Contract
from leukdetect.decision import Reason, decide
from leukdetect.decoding import Decoded


@dataclass(frozen=True)
class Quality:
    """Measured on the image as the model sees it."""

    brightness: float  # mean luma, 0..255
    sharpness: float  # variance of the Laplacian; small means blurred
    stain: float  # optical density of the darkest stain in red; small means no stained nucleus


@dataclass(frozen=True)
class Answer:
    """A class, how sure it is, and whether it may be reported; numbers are rounded as the server's."""

    key: str  # of the highest class, reported or not
    label: str  # the same for people
    probabilities: dict[str, float]  # calibrated, by class key
    p_malignant: float | None  # the malignant classes together; None where all classes are malignant, or none
    malignant: bool | None  # p_malignant is at or above the operating point
    not_excluded: list[str] | None  # keys in the conformal prediction set; None: the file has none
    decision: Literal["report", "refer"]
    reasons: tuple[Reason, ...]  # why it refers; empty for report
    wording: str
    unlikeness: float  # distance from the training images; beyond 1 it refers
    quality: Quality


def answer(contract: Contract, image: Decoded, outputs: Mapping[str, np.ndarray]) -> Answer:
    """Holds a model's outputs for one image (`probabilities` float32 [C], `unlikeness`) against its thresholds."""
    probabilities, unlikeness = outputs["probabilities"], float(outputs["unlikeness"])
    decision = decide(probabilities, unlikeness, image.brightness, image.sharpness, image.stain, contract)
    classes = contract.classes
    return Answer(
        key=classes[decision.top].key,
        label=classes[decision.top].label,
        probabilities={each.key: round(share, 6) for each, share in zip(classes, probabilities.tolist(), strict=True)},
        p_malignant=None if decision.p_malignant is None else round(decision.p_malignant, 6),
        malignant=decision.malignant,
        not_excluded=None if decision.not_excluded is None else [classes[i].key for i in decision.not_excluded],
        decision=decision.kind,
        reasons=decision.reasons,
        wording=decision.wording,
        unlikeness=round(unlikeness, 4),
        quality=Quality(round(image.brightness, 1), round(image.sharpness, 1), round(image.stain, 3)),
    )


def disclaimer(contract: Contract) -> str:
    """The model's own, after the one that a model without clinical meaning needs first."""
    synthetic = "Trained on rendered images: no clinical meaning. " if contract.provenance.synthetic else ""
    return synthetic + contract.disclaimer
