"""From scores to an answer: report, or refer to a haematologist and say why."""

from collections.abc import Iterator
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
    p_malignant: float
    malignant: bool
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
    p_malignant = float(sum(p for p, c in zip(probabilities, contract.classes, strict=True) if c.malignant))
    malignant = p_malignant >= contract.thresholds.malignant
    reasons = (
        *_of_quality(brightness, sharpness, stain, contract.thresholds),
        *_of_scores(float(probabilities[top]), unlikeness, contract.classes[top], p_malignant, contract.thresholds),
    )
    wording = _wording(contract.classes[top], p_malignant, malignant, reasons)
    not_excluded = None
    if sets := contract.prediction_sets:
        # The highest class is always in the set: an empty set would say less than the answer.
        not_excluded = tuple(i for i, limit in enumerate(sets.thresholds) if i == top or probabilities[i] >= limit)
    return Decision(top, p_malignant, malignant, reasons, wording, not_excluded)


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


def _of_scores(
    confidence: float, unlikeness: float, top: Class, p_malignant: float, limits: Thresholds
) -> Iterator[Reason]:
    if unlikeness > 1.0:
        detail = (
            f"Its distance from the training images is {unlikeness:.2f}; beyond 1.00 the model is not to be relied on."
        )
        yield Reason("unlike_training_images", "the image is unlike those the model learned from", detail)
    if confidence < limits.confidence:
        lowest = _percent(limits.confidence)
        detail = f"The highest probability is {_percent(confidence)}; below {lowest} no class is named."
        yield Reason("low_confidence", "no class is likely enough", detail)
    # The highest class and the operating point may disagree, since several malignant classes add up.
    malignant, together, point = p_malignant >= limits.malignant, _percent(p_malignant), _percent(limits.malignant)
    if malignant and not top.malignant:
        detail = (
            f"The highest class is {top.label}, yet the malignant classes together reach {together}; "
            f"from {point} on, malignancy is not excluded."
        )
        yield Reason("malignant_not_excluded", "malignancy is not excluded", detail)
    if top.malignant and not malignant:
        detail = (
            f"The highest class is {top.label}, yet the malignant classes together reach only {together}, "
            f"below the operating point of {point}."
        )
        yield Reason("malignant_not_confirmed", "the signs of malignancy are weak", detail)


def _wording(top: Class, p_malignant: float, malignant: bool, reasons: tuple[Reason, ...]) -> str:
    if reasons:
        why = ", and ".join(reason.brief for reason in reasons)
        together = f" The malignant classes together reach {_percent(p_malignant)}." if malignant else ""
        return f"Refer to a haematologist: {why}.{together}"
    # Subtypes are defined by immunophenotype, not by looks.
    rest = "confirm by flow cytometry" if top.malignant else "this alone does not exclude leukaemia"
    return f"Resembles {top.label}; {rest}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"  # a no-break space
