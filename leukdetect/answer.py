"""The answer to one image: what the library returns, the server sends and a scoring job writes."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leukdetect.contract import Contract
from leukdetect.decision import Reason, decide
from leukdetect.decoding import Decoded


class Quality(BaseModel):
    """Measured on the image as the model sees it."""

    model_config = ConfigDict(frozen=True)

    brightness: float = Field(description="mean luma, 0..255")
    sharpness: float = Field(description="variance of the Laplacian; small means blurred")
    stain: float = Field(description="optical density of the darkest stain in red; small means no stained nucleus")


class Answer(BaseModel):
    """A class, how sure it is, and whether it may be reported. The server's answer has these fields, and more."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(serialization_alias="class", description="the key of the highest class, reported or not")
    label: str = Field(description="the same for people")
    probabilities: dict[str, float] = Field(description="calibrated, for every class")
    p_malignant: float | None = Field(
        description="the malignant classes together; null where all of the model's classes are malignant, or none"
    )
    malignant: bool | None = Field(description="p_malignant is at or above the model's operating point")
    not_excluded: list[str] | None = Field(
        description="keys of the classes that cannot be excluded: a conformal prediction set, made to lack the true "
        "class in prediction_sets.error (see /model) of images like the validation images. For information: it selects "
        "nothing. null: the model file is from before there were any"
    )
    decision: Literal["report", "refer"] = Field(description="refer: it declines, a haematologist must look")
    reasons: tuple[Reason, ...] = Field(description="why it refers; empty for report")
    wording: str = Field(description="the answer in words fit for a person")
    unlikeness: float = Field(description="distance from the training images; beyond 1 it refers")
    quality: Quality


def answer(contract: Contract, image: Decoded, outputs: Mapping[str, np.ndarray]) -> Answer:
    """Holds a model's outputs for one image (`probabilities` float32 [C], `unlikeness`) against its thresholds.

    Numbers are rounded, so that library, server and scoring job say the same.
    """
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
        quality=Quality(
            brightness=round(image.brightness, 1), sharpness=round(image.sharpness, 1), stain=round(image.stain, 3)
        ),
    )


def disclaimer(contract: Contract) -> str:
    """The model's own, after the one that a model without clinical meaning needs first."""
    synthetic = "Trained on rendered images: no clinical meaning. " if contract.provenance.synthetic else ""
    return synthetic + contract.disclaimer
