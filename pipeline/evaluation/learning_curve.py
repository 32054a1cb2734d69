"""What a recipe reaches on held-out folds, by the number of training images: reports/cross_validation.json."""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import ConfigDict, Field

from pipeline import params, stage
from pipeline.evaluation import metrics
from pipeline.evaluation.classification import hits
from pipeline.evaluation.metrics import Count, Estimate, Number, Section
from pipeline.params import Params

JSON = Path("reports/cross_validation.json")


class Point(Section):
    """The results with one share of the training groups; `recall_<class>` is each class's recall."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Estimate]
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    colour_only: Estimate
    margin_over_colour: Estimate
    images: Count
    groups: Count
    fewest_groups: Annotated[Count | None, Field(description="of a class; absent from files of before")] = None
    trained_on: float  # images, mean over folds
    each_fold: list[Number]


class Folds(Section):
    """Results on held-out folds, by the share of the training groups that was trained on."""

    key: str  # of the recipe and the images: folds of another key are not shown
    folds: Count
    by_share: dict[str, Point]


def key(recipe: Params, data: str) -> str:
    """The key of `Folds`; `data` is `prepared.digest`."""
    return stage.state_key(params.until(recipe, "fine_tune"), data)


def read(key: str) -> Folds | None:
    """The folds that were trained last, if they have that key."""
    folds = Folds.model_validate_json(JSON.read_text()) if JSON.is_file() else None
    return folds if folds and folds.key == key else None


def summary(table: pd.DataFrame, recipe: Params) -> Point:
    """Metrics of the held-out predictions of all folds together, the colour-only baseline's, and each fold's own.

    Intervals resample groups within each class, and not the training: `each_fold` shows how far trainings differ.
    No AUROC, since scores of different networks are not of one scale.

    Args:
        table: a row an image: class, group, predicted, colour (the baseline's class), fold, trained_on.
    """
    keys = [c.key for c in recipe.classes]
    labels, predicted, by_colour = (table[name].map(keys.index).to_numpy() for name in ("class", "predicted", "colour"))
    weights = metrics.group_weights(labels, table["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
    recalls: dict[str, Any] = {
        f"recall_{key}": metrics.estimate_mean(predicted == i, weights * (labels == i)) for i, key in enumerate(keys)
    }
    each_class = (table["class"] == table["predicted"]).groupby([table["fold"], table["class"]]).mean()
    return Point(
        **dict(hits(predicted, labels, len(keys), weights)),
        colour_only=metrics.estimate(metrics.balanced_accuracy(labels, by_colour, weights)),
        margin_over_colour=metrics.paired_bootstrap(labels, predicted, by_colour, weights),
        **recalls,
        images=len(table),
        groups=int(table["group"].nunique()),
        fewest_groups=int(table.groupby("class")["group"].nunique().min()),
        trained_on=round(float(table.groupby("fold")["trained_on"].first().mean()), 1),
        each_fold=each_class.groupby("fold").mean().tolist(),  # balanced accuracy
    )
