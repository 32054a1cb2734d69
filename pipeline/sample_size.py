"""How many patients a study needs to know sensitivity and specificity to within ± a margin.

Run:    python -m pipeline.sample_size --sensitivity 0.95 --specificity 0.90 --margin 0.05 --prevalence 0.2
"""

import argparse
import math
from dataclasses import dataclass

from pipeline import stage
from pipeline.stage import Problem

Z = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Size:
    """What a study needs, rounded up."""

    malignant: int  # independent malignant cases
    benign: int
    patients: int  # taken in as they come, until both are there


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, meaning in (
        ("sensitivity", "expected"),
        ("specificity", "expected"),
        ("margin", "half the width of the 95 %% interval"),
        ("prevalence", "share of malignant among the patients taken in"),
    ):
        arguments.add_argument(f"--{name}", type=float, required=True, help=meaning)
    arguments.add_argument("--images", type=float, default=1, help="images a patient that are each a case")
    arguments.add_argument("--correlation", type=float, default=0, help="of a patient's images being called right")
    options = arguments.parse_args()
    size = sample_size(**vars(options))
    print(
        f"{size.malignant} malignant and {size.benign} benign patients, chosen by their diagnosis; or {size.patients} "
        "as they come. Add for images that cannot be used, and for patients without a diagnosis."
    )


def sample_size(
    sensitivity: float, specificity: float, margin: float, prevalence: float, images: float = 1, correlation: float = 0
) -> Size:
    """Patients for an interval of ± margin: Buderer 1996, Academic Emergency Medicine 3:895-900.

    The normal approximation, as published. It is too small where an expectation lies within a margin of 1: there take a
    lower one. Images of one patient are alike: each adds less by Kish's design effect, 1 + (images - 1) × correlation.

    Raises:
        Problem: a share is not between 0 and 1, or there is less than one image a patient.
    """
    shares = {"sensitivity": sensitivity, "specificity": specificity, "margin": margin, "prevalence": prevalence}
    for name, value in shares.items():
        if not 0 < value < 1:
            raise Problem(f"--{name} must lie between 0 and 1, not {value:g}")
    if not (0 <= correlation <= 1 and images >= 1):
        raise Problem(f"--correlation must be 0 to 1 and --images 1 or more, not {correlation:g} and {images:g}")
    effect = (1 + (images - 1) * correlation) / images
    malignant, benign = (Z**2 * p * (1 - p) / margin**2 * effect for p in (sensitivity, specificity))
    return Size(
        math.ceil(malignant), math.ceil(benign), math.ceil(max(malignant / prevalence, benign / (1 - prevalence)))
    )


if __name__ == "__main__":
    stage.guard(main)
