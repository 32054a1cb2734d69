"""How many patients a study needs to know sensitivity and specificity to within ± a margin, or to show a lower bound.

Run:    python -m pipeline.evaluation.sample_size --sensitivity 0.95 --specificity 0.90 --margin 0.05 --prevalence 0.2
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pipeline import stage
from pipeline.stage import Problem

Z = 1.959964  # of a two-sided 95 % interval
POWER, Z_POWER = 0.8, 0.841621  # the chance that a bound is shown, and its normal quantile


class Size(NamedTuple):
    """What a study needs, rounded up."""

    malignant: int  # patients chosen by their diagnosis
    benign: int
    patients: int  # enrolled as they come, who on average include as many of both


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = partial(arguments.add_argument, type=float, required=True)
    add("--sensitivity", help="expected")
    add("--specificity", help="expected")
    add("--margin", help="half the width of the 95 %% interval, or how far the bound lies below what is expected")
    add("--prevalence", help="share of malignant among the patients enrolled")
    arguments.add_argument("--images", type=float, default=1, help="images a patient that are each a case")
    arguments.add_argument("--correlation", type=float, default=0, help="of a patient's images being called right")
    options = arguments.parse_args()
    bounds = " and ".join(f"{p - options.margin:.3g}" for p in (options.sensitivity, options.specificity))
    for aim, cases in (
        (f"To know both to within ± {options.margin:g}", to_know),
        (f"For a chance of {POWER:g} each to show that they lie above {bounds}", to_show),
    ):
        size = sample_size(**vars(options), cases=cases)
        print(
            f"{aim}: {size.malignant} malignant and {size.benign} benign patients, chosen by their diagnosis; "
            f"or about {size.patients} as they come."
        )
    print("Add for images that cannot be used, and for patients without a diagnosis.")


def to_know(p: float, margin: float) -> float:
    """Cases for an interval of ± margin: Buderer 1996, Academic Emergency Medicine 3:895-900.

    The normal approximation, as published. It gives too few cases where p + margin exceeds 1: take a smaller p there.
    """
    return Z**2 * p * (1 - p) / margin**2


def to_show(p: float, margin: float) -> float:
    """Cases for a chance of POWER that Wilson's interval lies above p - margin; with `to_know`'s it seldom does.

    Normal approximation of the score test of one proportion: Fleiss, Levin and Paik 2003, Statistical Methods for Rates
    and Proportions, 3rd ed., chapter 2.
    """
    bound = p - margin
    return ((Z * math.sqrt(bound * (1 - bound)) + Z_POWER * math.sqrt(p * (1 - p))) / margin) ** 2


def sample_size(
    sensitivity: float,
    specificity: float,
    margin: float,
    prevalence: float,
    images: float = 1,
    correlation: float = 0,
    cases: Callable[[float, float], float] = to_know,
) -> Size:
    """Patients for `cases` of both kinds. Raises Problem for an option out of range.

    Images of one patient are alike: Kish's design effect, 1 + (images - 1) × correlation, reduces what each adds.
    """
    shares = {"sensitivity": sensitivity, "specificity": specificity, "margin": margin, "prevalence": prevalence}
    for name, value in shares.items():
        if not 0 < value < 1:
            raise Problem(f"--{name} must lie between 0 and 1, not {value:g}")
    if margin >= min(sensitivity, specificity):
        raise Problem(f"--margin must be below --sensitivity and --specificity, not {margin:g}")
    if not (0 <= correlation <= 1 and images >= 1):
        raise Problem(f"--correlation must be 0 to 1 and --images 1 or more, not {correlation:g} and {images:g}")
    effect = (1 + (images - 1) * correlation) / images
    malignant, benign = (cases(p, margin) * effect for p in (sensitivity, specificity))
    return Size(*map(math.ceil, (malignant, benign, max(malignant / prevalence, benign / (1 - prevalence)))))


if __name__ == "__main__":
    stage.guard(main)
