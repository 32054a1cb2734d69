"""What all images of a folder show together, beside the windows: one class that takes over, pictures of other sizes.

A window's thresholds hold for a stream that is watched for years: one false alarm in a thousand windows. A folder is
looked at once, so that more of it may be told: by chance, one in twenty.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import betainc

from leukdetect.contract import Reference

LEVEL = 0.05
MARGIN = 1.5  # times the validation files' range of sides that are still like them
FEW = 0.1  # share of images that may be of another size


def mix(predicted: np.ndarray, groups: int, reference: Reference, labels: Sequence[str]) -> str:
    """A sentence where one class has taken over among n images, predicted int [n]; empty where chance explains it.

    Images of a patient are alike, so patients are counted: `groups`, or where that is 0, as many as the validation
    images had for so many images. The chance that one class has such a share of so many patients or more is the
    binomial's tail, here for shares that are no whole number of patients, summed over the classes (Bonferroni).
    """
    n = len(predicted)
    patients = groups or max(1.0, n * reference.groups / reference.images)
    shares, usual = np.bincount(predicted, minlength=len(labels)) / n, np.array(reference.class_shares)
    top = int((shares - usual).argmax())
    reached = float(shares[top]) * patients
    chance = float(betainc(reached, patients - reached + 1, usual).sum()) if reached else 1.0
    if shares[top] <= usual[top] or chance >= LEVEL:
        return ""
    among = f"{'' if groups else 'about '}{patients:.0f} patients or sessions"
    return (
        f"{shares[top]:.0%} of the {n} images are called {labels[top]}; of the validation images {usual[top]:.0%} "
        f"were. Among {among}, a class has so large a share by chance in {chance:.2%} of folders."
    )


def sizes(sides: np.ndarray, reference: Reference) -> str:
    """A sentence where files have other numbers of pixels than the validation files; `sides` [n]: √(width × height)."""
    if reference.sides is None:  # a file from before they were known
        return ""
    low, high = reference.sides[0], reference.sides[-1]
    other = (sides < low / MARGIN) | (sides > high * MARGIN)
    if other.mean() <= FEW:
        return ""
    times = float(np.median(sides[other])) / reference.sides[len(reference.sides) // 2]
    return (
        f"{other.sum()} of the {len(sides)} pictures have other sizes than the validation images, whose sides are "
        f"{low:.0f} to {high:.0f} pixels: {times:.2g} times the side, {times**2:.2g} times the area. Another "
        "magnification, camera or crop looks alike once it is resized, and is not."
    )
