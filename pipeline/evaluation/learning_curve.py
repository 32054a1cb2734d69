"""What a recipe reaches on held-out folds, by how many images it was trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict

from pipeline import params, stage
from pipeline.evaluation import metrics
from pipeline.evaluation.classification import hits
from pipeline.evaluation.metrics import Count, Estimate, Number, Section
from pipeline.params import Params

JSON = Path("reports/cross_validation.json")


class Point(Section):
    """What one share of the training groups reaches; and, by `recall_<class>`, each class's recall."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Estimate]
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    colour_only: Estimate
    margin_over_colour: Estimate
    images: Count
    groups: Count
    trained_on: float  # images, mean over folds
    each_fold: list[Number]


class Folds(Section):
    """Held-out folds, by the share of the training groups that was trained on."""

    key: str  # names the recipe and the images, so that one's folds are never shown as another's
    folds: Count
    by_share: dict[str, Point]


def key(recipe: Params, data: str) -> str:
    """Of `Folds`; `data` is `prepared.digest`."""
    return stage.state_key(params.until(recipe, "fine_tune"), data)


def read(key: str) -> Folds | None:
    """The folds of that key, if it was they that were trained last."""
    if not JSON.is_file():
        return None
    folds = Folds.model_validate_json(JSON.read_text())
    return folds if folds.key == key else None


def summary(table: pd.DataFrame, recipe: Params) -> Point:
    """Metrics of the held-out predictions of all folds together, the colour-only baseline's, and each fold's own.

    Intervals resample groups within each class. They hold the trained networks fixed: `each_fold` shows how far
    trainings differ. No AUROC: scores of different networks are not of one scale.

    Args:
        table: a row an image: class, group, predicted, colour (the baseline's class), fold, trained_on.
    """
    keys = [c.key for c in recipe.classes]
    labels, predicted, by_colour = (table[name].map(keys.index).to_numpy() for name in ("class", "predicted", "colour"))
    weights = metrics.group_weights(labels, table["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
    recall = metrics.recall(metrics.confusion(labels, predicted, len(keys), weights))
    own, colour = (metrics.balanced_accuracy(labels, said, weights) for said in (predicted, by_colour))
    recalls: dict[str, Any] = {f"recall_{key}": metrics.estimate(recall[:, i]) for i, key in enumerate(keys)}
    once = np.ones((1, len(table)))
    return Point(
        **dict(hits(predicted, labels, len(keys), weights)),
        colour_only=metrics.estimate(colour),
        margin_over_colour=metrics.estimate(own - colour),
        **recalls,
        images=len(table),
        groups=int(table["group"].nunique()),
        trained_on=round(float(table.groupby("fold")["trained_on"].first().mean()), 1),
        each_fold=[
            float(metrics.balanced_accuracy(labels[rows], predicted[rows], once[:, rows])[0])
            for rows in table.groupby("fold").indices.values()
        ],
    )
