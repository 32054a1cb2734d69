"""How far trainings on other folds and seeds differ: a section of reports/metrics.json."""

from typing import Annotated

from pydantic import Field

from pipeline.evaluation.metrics import Count, Number, Section


class OutOfFold(Section):
    """How the estimate was made, and how far trainings differ: balanced accuracy of each fold and seed (FP32)."""

    folds: Count
    trained_on: Annotated[Number, Field(description="images, mean over folds; the model learnt from all")]
    seeds: list[Count]
    each_seed: Annotated[list[Number], Field(description="over all images; the first one's answers are the estimate")]
    each_fold: Annotated[list[list[Number]], Field(description="by seed")]
