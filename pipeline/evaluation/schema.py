"""What reports/metrics.json must hold: the part of the model card for machines, checked before it is written.

The same as a JSON Schema: `metrics.schema.json`, beside this file, which cannot say that an interval holds its value. A
section may hold more than is named here; a section that is not named may not be there, so that nothing is measured that
nobody can look up.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.stage import Problem

SCHEMA_FILE = Path(__file__).with_name("metrics.schema.json")

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Interval(BaseModel):
    """A value measured on the test split, in a 95 % interval from resamples of its groups."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is not within {self.low} to {self.high}")
        return self


Intervals = dict[str, Interval]


class McNemar(_Section):
    """How often only one of two is right, and the exact two-sided p."""

    only_a: Count
    only_b: Count
    p: Share


class Split(_Section):
    """How many images, and groups of them."""

    train: Count
    val: Count
    test: Count
    embargo: Count
    test_groups: Count
    fewest_test_groups: Annotated[int, Field(ge=0, description="of a class")]


class Hits(_Section):
    """What needs nothing but the class that was given."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval


class Headline(Hits):
    """Everything that one number says of a model file."""

    malignant_sensitivity: Interval
    malignant_specificity: Interval
    malignant_auroc: Interval
    macro_auroc: Interval
    ece: Interval
    brier: Interval
    nll: Interval
    coverage: Interval
    accuracy_reported: Interval


class WholeHeadline(Headline):
    """With what is said of the FP32 file only."""

    per_class: dict[str, Intervals]
    wilson: Intervals


class Int8(_Section):
    """How INT8 differs from FP32, which is A in McNemar's test."""

    balanced_accuracy_drop: Interval
    equal_argmax: Interval
    mcnemar: McNemar
    mean_difference: float
    max_difference: float


class Calibration(_Section):
    """Before and after the temperature."""

    temperature: Annotated[float, Field(gt=0)]
    before: Intervals
    after: Intervals


class OperatingPoint(_Section):
    """Malignant against benign."""

    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    wilson: Annotated[
        Intervals, Field(description="predictive values with sensitivity and specificity at Wilson's ends")
    ]
    threshold: Share
    prevalence: Share


class AddedBy(_Section):
    """The share that each check refers and none before it does."""

    unlikeness: Interval
    quality: Interval
    scores: Interval


class Foreign(_Section):
    """Images of one kind that are no such smears."""

    images: Count
    auroc: Interval
    referred: Interval
    added_by: AddedBy


class Abstention(_Section):
    """How one model file declines."""

    referred: Interval
    added_by: AddedBy
    false_referrals: Interval
    risk: Interval
    risk_reported: Interval
    aurc: Interval
    foreign: dict[str, Foreign]


class PredictionSets(_Section):
    """How often the set of classes that cannot be excluded holds the true one."""

    aim: Share
    coverage: Interval
    per_class: Intervals
    size: Interval
    single: Interval


class Curves(_Section):
    """The probability of the class after each step."""

    map: list[float]
    random: list[float]


class Altered(_Section):
    """Deletion or insertion: areas under the curves of the map's and of a random map's order."""

    curves: Curves
    map: Interval
    random: Interval
    gain: Interval


class Similar(_Section):
    """Of how many nearest training images what share has the image's own class, and of the whole index."""

    cases: Count
    index: Count
    same_class: Interval
    chance: Interval


class Explanations(_Section):
    """Tests of the maps of where the model looked."""

    grid: tuple[int, int]
    empty: Interval
    cell: Annotated[dict[str, Intervals] | None, Field(description="only where the cell is known")] = None
    altered_images: Annotated[Count | None, Field(description="this and the next only where some map is not empty")] = (
        None
    )
    randomised: dict[str, Intervals] | None = None
    deletion: Altered | None = None
    insertion: Altered | None = None
    similar: Annotated[Similar | None, Field(description="only where the model file has an index")] = None


Section = TypeVar("Section", bound=_Section)


class Both(BaseModel, Generic[Section]):
    """Of both model files."""

    model_config = ConfigDict(extra="forbid")
    fp32: Section
    int8: Section


class Report(BaseModel):
    """reports/metrics.json."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"}
    )
    split: Split
    synthetic: Annotated[bool, Field(description="trained and measured on rendered images: no clinical meaning")]
    fp32: WholeHeadline
    int8: Headline
    int8_vs_fp32: Int8
    colour_only: Annotated[Hits, Field(description="a random forest that sees six numbers of colour")]
    margin_over_colour: Annotated[Interval, Field(description="of balanced accuracy")]
    mcnemar_over_colour: McNemar
    audit: dict[str, Intervals]
    calibration: Calibration
    operating_point: OperatingPoint
    abstention: Both[Abstention]
    prediction_sets: Both[PredictionSets]
    explanations: Explanations
    cross_validation: Annotated[
        dict[str, Any] | None, Field(description="only where pipeline.cross_validate was run with this very recipe")
    ] = None


def check(report: dict[str, Any]) -> None:
    """Raises Problem if the report breaks the schema; names the first place that does."""
    try:
        # As the text that is written: an array is a tuple, but a "0.9" is no number.
        Report.model_validate_json(json.dumps(report), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Problem(
            f"what was measured breaks pipeline/evaluation/schema.py at {where}: {first['msg']}. Mend the section that "
            "measures it, or the schema if it is meant to change"
        ) from error
