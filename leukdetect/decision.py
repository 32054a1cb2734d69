"""From scores to an answer: report, or refer to a haematologist and say why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leukdetect.contract import Class, Contract, Thresholds

ReasonCode = Literal[
    "low_confidence",
    "unlike_training_images",
    "too_dark",
    "too_bright",
    "blurred",
    "no_stained_nucleus",
    "malignant_not_excluded",
    "malignant_not_confirmed",
]


@dataclass(frozen=True)
class Reason:
    """Why an image is referred: a code for programs, a few words for the headline, the numbers in a sentence."""

    code: ReasonCode
    brief: str
    detail: str


@dataclass(frozen=True)
class Decision:
    """What the server says about an image. `top` indexes the contract's classes."""

    top: int
    p_malignant: float | None  # None where not both kinds of classes are known, as `malignant`
    malignant: bool | None
    reasons: tuple[Reason, ...]
    wording: str
    not_excluded: tuple[int, ...] | None  # indexes of classes; None where the model file has no prediction sets

    @property
    def kind(self) -> Literal["report", "refer"]:
        return "refer" if self.reasons else "report"


def decide(
    probabilities: np.ndarray,
    unlikeness: float,
    brightness: float,
    sharpness: float,
    stain: float,
    contract: Contract,
) -> Decision:
    """Holds one image's scores (float32 [C]) and quality (at S×S pixels) against the contract's thresholds."""
    top = int(np.argmax(probabilities))
    limits, p_malignant, malignant = contract.thresholds, None, None
    reasons = [
        *_of_quality(brightness, sharpness, stain, limits),
        *_of_scores(float(probabilities[top]), unlikeness, limits),
    ]
    if limits.malignant is not None:
        p_malignant = float(sum(p for p, c in zip(probabilities, contract.classes, strict=True) if c.malignant))
        malignant = p_malignant >= limits.malignant
        reasons += _of_malignancy(contract.classes[top], p_malignant, limits.malignant)
    wording = _wording(contract, contract.classes[top], p_malignant if malignant else None, reasons)
    not_excluded = None
    if sets := contract.prediction_sets:
        # The highest class is always in the set: an empty set would say less than the answer.
        not_excluded = tuple(i for i, limit in enumerate(sets.thresholds) if i == top or probabilities[i] >= limit)
    return Decision(top, p_malignant, malignant, tuple(reasons), wording, not_excluded)


def _of_quality(brightness: float, sharpness: float, stain: float, limits: Thresholds) -> Iterator[Reason]:
    lowest, highest = limits.brightness
    if brightness < lowest:
        detail = f"The mean brightness is {brightness:.0f} of 255; at least {lowest:.0f} is needed."
        yield Reason("too_dark", "the image is too dark", detail)
    if brightness > highest:
        detail = f"The mean brightness is {brightness:.0f} of 255; at most {highest:.0f} is usable."
        yield Reason("too_bright", "the image is too bright", detail)
    if sharpness < limits.min_sharpness:
        detail = f"The sharpness is {sharpness:.1f}; at least {limits.min_sharpness:.1f} is needed."
        yield Reason("blurred", "the image is blurred or empty", detail)
    if stain < limits.min_stain:
        detail = (
            f"Red and green light together are weakened by {stain:.2f} at most (optical density); a stained nucleus "
            f"weakens them by {limits.min_stain:.2f} or more."
        )
        yield Reason("no_stained_nucleus", "no stained nucleus is seen", detail)


def _of_scores(confidence: float, unlikeness: float, limits: Thresholds) -> Iterator[Reason]:
    if unlikeness > 1.0:
        detail = (
            f"Its distance from the training images is {unlikeness:.2f}; beyond 1.00 the model is not to be relied on."
        )
        yield Reason("unlike_training_images", "the image is unlike those the model learned from", detail)
    if confidence < limits.confidence:
        lowest = _percent(limits.confidence)
        detail = f"The highest probability is {_percent(confidence)}; below {lowest} no class is named."
        yield Reason("low_confidence", "no class is likely enough", detail)


def _of_malignancy(top: Class, p_malignant: float, point: float) -> Iterator[Reason]:
    """The highest class and the operating point may disagree, since several malignant classes add up."""
    if p_malignant >= point and not top.malignant:
        detail = (
            f"The highest class is {top.label}, yet the malignant classes together reach {_percent(p_malignant)}; "
            f"from {_percent(point)} on, malignancy is not excluded."
        )
        yield Reason("malignant_not_excluded", "malignancy is not excluded", detail)
    if top.malignant and p_malignant < point:
        detail = (
            f"The highest class is {top.label}, yet the malignant classes together reach only {_percent(p_malignant)}, "
            f"below the operating point of {_percent(point)}."
        )
        yield Reason("malignant_not_confirmed", "the signs of malignancy are weak", detail)


def _wording(contract: Contract, top: Class, called_malignant: float | None, reasons: Sequence[Reason]) -> str:
    """`called_malignant`: P(malignant) at or above the operating point."""
    if reasons:
        why = ", and ".join(reason.brief for reason in reasons)
        together = f" The malignant classes together reach {_percent(called_malignant)}." if called_malignant else ""
        return f"Refer to a haematologist: {why}.{together}"
    sentence = contract.wording.malignant if top.malignant else contract.wording.other
    return sentence.replace("{label}", top.label)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"  # a no-break space
