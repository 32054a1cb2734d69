"""Limits of a model file that calibration put at the end of what they may be: there, the data did not choose them."""

import math

from leukdetect.contract import Contract
from pipeline.model_file.calibration import HIGHEST_POINT, TEMPERATURES
from pipeline.sections import Calibrate

NEAR = 0.01  # of the logarithm: a search within bounds never quite reaches one
USELESS = 0.001  # an operating point below it calls nearly everything malignant


def at_ends(contract: Contract, settings: Calibrate) -> list[str]:
    """One sentence for each. `settings`: what the thresholds were fitted with."""
    limits, sets, n = contract.thresholds, contract.prediction_sets, contract.reference.images
    found = []
    if any(abs(math.log(contract.temperature / end)) < NEAR for end in TEMPERATURES):
        low, high = TEMPERATURES
        found.append(f"The temperature is {contract.temperature:.3g}, an end of its range ({low:g} to {high:g}).")
    point = limits.malignant
    if point is not None and (point >= HIGHEST_POINT or point < USELESS):
        why = "as high as it may be" if point >= HIGHEST_POINT else "so low that nearly all is called malignant"
        found.append(f"The operating point is {point:.3f}, {why}: the target sensitivity did not choose it.")
    for name, share in (("confidence", settings.refer_share), ("unlikeness", 1 - settings.unlikeness_quantile)):
        if share * (n - 1) < 1:
            found.append(
                f"The limit of {name} is that of the single most extreme of {n} held-out images: "
                f"{share:.2g} of them are less than one."
            )
    if limits.brightness[0] <= 0 or limits.brightness[1] >= 255:
        low, high = limits.brightness
        found.append(
            f"The limits of brightness, {low:.0f} to {high:.0f}, reach an end of 0 to 255 and refer nothing there."
        )
    if never := [
        c.label for c, limit in zip(contract.classes, sets.thresholds if sets else [], strict=False) if limit == 0
    ]:
        found.append(f"Too few held-out images to ever exclude {', '.join(never)}.")
    return found
