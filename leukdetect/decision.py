"""From scores to an answer: report, or refer to a haematologist and say why."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from leukdetect.contract import Contract

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
        *_of_quality(brightness, sharpness, stain, contract),
        *_of_scores(float(probabilities[top]), unlikeness, contract),
        *_of_disagreement(
            contract.classes[top].label, contract.classes[top].malignant, malignant, p_malignant, contract
        ),
    )
    wording = _wording(top, p_malignant, malignant, reasons, contract)
    return Decision(top, p_malignant, malignant, reasons, wording, _not_excluded(probabilities, top, contract))


def _not_excluded(probabilities: np.ndarray, top: int, contract: Contract) -> tuple[int, ...] | None:
    """The conformal prediction set. The highest class is always in it: an empty set would say less than the answer."""
    if contract.prediction_sets is None:
        return None
    limits = contract.prediction_sets.thresholds
    return tuple(i for i, limit in enumerate(limits) if i == top or probabilities[i] >= limit)


def _of_quality(brightness: float, sharpness: float, stain: float, contract: Contract) -> list[Reason]:
    lowest, highest = contract.thresholds.brightness
    sharp = contract.thresholds.min_sharpness
    reasons = []
    if brightness < lowest:
        detail = f"The mean brightness is {brightness:.0f} of 255; at least {lowest:.0f} is needed."
        reasons.append(Reason("too_dark", "the image is too dark", detail))
    if brightness > highest:
        detail = f"The mean brightness is {brightness:.0f} of 255; at most {highest:.0f} is usable."
        reasons.append(Reason("too_bright", "the image is too bright", detail))
    if sharpness < sharp:
        detail = f"The sharpness is {sharpness:.1f}; at least {sharp:.1f} is needed."
        reasons.append(Reason("blurred", "the image is blurred or empty", detail))
    if stain < contract.thresholds.min_stain:
        detail = (
            f"Red and green light together are weakened by {stain:.2f} at most (optical density); a stained nucleus "
            f"weakens them by {contract.thresholds.min_stain:.2f} or more."
        )
        reasons.append(Reason("no_stained_nucleus", "no stained nucleus is seen", detail))
    return reasons


def _of_scores(confidence: float, unlikeness: float, contract: Contract) -> list[Reason]:
    lowest = contract.thresholds.confidence
    reasons = []
    if unlikeness > 1.0:
        detail = (
            f"Its distance from the training images is {unlikeness:.2f}; beyond 1.00 the model is not to be relied on."
        )
        reasons.append(Reason("unlike_training_images", "the image is unlike those the model learned from", detail))
    if confidence < lowest:
        detail = f"The highest probability is {_percent(confidence)}; below {_percent(lowest)} no class is named."
        reasons.append(Reason("low_confidence", "no class is likely enough", detail))
    return reasons


def _of_disagreement(
    label: str, top_malignant: bool, malignant: bool, p_malignant: float, contract: Contract
) -> list[Reason]:
    """The highest class and the operating point may differ, since several malignant classes add up."""
    point = _percent(contract.thresholds.malignant)
    if malignant and not top_malignant:
        detail = (
            f"The highest class is {label}, yet the malignant classes together reach {_percent(p_malignant)}; "
            f"from {point} on, malignancy is not excluded."
        )
        return [Reason("malignant_not_excluded", "malignancy is not excluded", detail)]
    if top_malignant and not malignant:
        detail = (
            f"The highest class is {label}, yet the malignant classes together reach only {_percent(p_malignant)}, "
            f"below the operating point of {point}."
        )
        return [Reason("malignant_not_confirmed", "the signs of malignancy are weak", detail)]
    return []


def _wording(top: int, p_malignant: float, malignant: bool, reasons: tuple[Reason, ...], contract: Contract) -> str:
    highest = contract.classes[top]
    if reasons:
        why = ", and ".join(reason.brief for reason in reasons)
        together = f" The malignant classes together reach {_percent(p_malignant)}." if malignant else ""
        return f"Refer to a haematologist: {why}.{together}"
    if highest.malignant:
        # Subtypes are defined by immunophenotype, not by looks.
        return f"Resembles {highest.label}; confirm by flow cytometry."
    return f"Resembles {highest.label}; this alone does not exclude leukaemia."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"  # a no-break space
