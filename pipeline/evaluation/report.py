"""reports/metrics.json: the part of the model card for machines. Each section's class is beside what measures it.

reports/headline.json has the few of its figures that people compare: DVC's metrics file, and MLflow's metrics.

`metrics.schema.json`, beside this file, says the same as a JSON Schema, but for `low <= value <= high`. A figure that
no class names cannot be written, so that every figure can be looked up.
"""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import ConfigDict, Field, ValidationError

from pipeline.data import prepared
from pipeline.evaluation.abstention import Abstention
from pipeline.evaluation.calibration import Calibration, OperatingPoint
from pipeline.evaluation.classification import Hits, Int8, WholeHeadline
from pipeline.evaluation.explanations import Explanations
from pipeline.evaluation.learning_curve import Folds
from pipeline.evaluation.metrics import Both, Count, Estimate, McNemar, Section
from pipeline.evaluation.patients import Patients
from pipeline.evaluation.prediction_sets import Coverage
from pipeline.evaluation.shortcuts import Shortcuts
from pipeline.evaluation.spread import OutOfFold
from pipeline.stage import Problem

METRICS = Path("reports/metrics.json")
HEADLINE = Path("reports/headline.json")
SCHEMA_FILE = Path(__file__).with_name("metrics.schema.json")


class Split(Section):
    """Numbers of images and of groups."""

    train: Count
    val: Count
    test: Annotated[Count, Field(description="held out: with folds, all")]
    embargo: Count
    test_groups: Count
    fewest_test_groups: Annotated[int, Field(ge=0, description="of a class")]


class Measured(Section):
    """All but what the model is asked anew for, which takes longest."""

    split: Split
    out_of_fold: Annotated[
        OutOfFold | None,
        Field(description="where the results are of all images, each held out by one of several folds"),
    ] = None
    synthetic: Annotated[bool, Field(description="trained and measured on rendered images: no clinical meaning")]
    fp32: WholeHeadline
    int8: WholeHeadline
    int8_vs_fp32: Int8
    colour_only: Annotated[Hits, Field(description="a random forest that sees six numbers of colour")]
    margin_over_colour: Annotated[Estimate, Field(description="of balanced accuracy")]
    mcnemar_over_colour: McNemar
    calibration: Calibration
    operating_point: Annotated[
        OperatingPoint | None, Field(description="where some classes are malignant and some are not")
    ] = None
    abstention: Both[Abstention]
    prediction_sets: Both[Coverage]
    patients: Annotated[
        Both[Patients] | None, Field(description="where evaluate.label_of is patient: what the gate judges")
    ] = None
    limits_at_ends: Annotated[list[str], Field(default_factory=list, description="of the FP32 file, in words")]
    cross_validation: Annotated[
        Folds | None, Field(description="only where pipeline.cross_validate was run with this very recipe")
    ] = None


class Report(Measured):
    """reports/metrics.json."""

    model_config = ConfigDict(json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"})
    audit: Shortcuts
    explanations: Explanations

    def headline(self) -> dict[str, Any]:
        """reports/headline.json: what gate.yaml has bounds for, as single numbers, without what these classes lack."""
        return {
            "fp32": _of_file(self.fp32, self.abstention.fp32),
            "int8": _of_file(self.int8, self.abstention.int8),
            "margin_over_colour": round(self.margin_over_colour.value, 6),
            "cells_masked": round(self.audit.cells_masked.balanced_accuracy.value, 6),
            "corner_drop": round(self.audit.corner_of_another.drop.value, 6),
            "int8_drop": round(self.int8_vs_fp32.balanced_accuracy_drop.value, 6),
        }

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, without what was not measured."""
        return self.model_dump(mode="json", exclude_none=True)


def read(path: Path = METRICS) -> Report:
    """Reads the file back. Raises Problem if it is missing, or names the first place that breaks the schema."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing; `dvc repro` makes it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Problem(f"{path} is broken at {where}: {first['msg']}; `dvc repro -f evaluate` makes it anew") from error


def split_sizes(frame: pd.DataFrame) -> Split:
    """Counts the rows of split.csv."""
    test = prepared.held_out(frame)
    return Split(
        **{name: int((frame["split"] == name).sum()) for name in ("train", "val", "embargo")},
        test=len(test),
        test_groups=test["group"].nunique(),
        fewest_test_groups=int(test.groupby("class")["group"].nunique().min()),
    )


def _of_file(file: WholeHeadline, declines: Abstention) -> dict[str, float]:
    figures = {
        "balanced_accuracy": file.balanced_accuracy.value,
        "lowest_recall": min(each.recall.value for each in file.per_class.values()),  # of a class
        "ece": file.ece.value,
        "referred": declines.referred.value,
        "unlikeness_auroc": declines.unlikeness_auroc().value,
    }
    if file.malignant_sensitivity is not None:
        figures["malignant_sensitivity"] = file.malignant_sensitivity.value
    return {name: round(value, 6) for name, value in figures.items()}
