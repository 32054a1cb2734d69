"""What a recipe reaches on held-out folds, by how many images it was trained on: pure functions."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from pipeline import params, stage
from pipeline.evaluation import metrics
from pipeline.evaluation.classification import hits
from pipeline.params import Params


def key(recipe: Params, data: str) -> str:
    """Names the recipe and the images (`prepared.digest`), so that one's folds are never shown as another's."""
    return stage.state_key(params.until(recipe, "fine_tune"), data)


def summary(table: pd.DataFrame, recipe: Params) -> dict[str, Any]:
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
    estimates = hits(labels, predicted, len(keys), weights) | {
        "colour_only": metrics.estimate(colour),
        "margin_over_colour": metrics.estimate(own - colour),
        **{f"recall_{key}": metrics.estimate(recall[:, i]) for i, key in enumerate(keys)},
    }
    once = np.ones((1, len(table)))
    return {name: {end: round(number, 6) for end, number in asdict(e).items()} for name, e in estimates.items()} | {
        "images": len(table),
        "groups": int(table["group"].nunique()),
        "trained_on": round(float(table.groupby("fold")["trained_on"].first().mean()), 1),  # images, mean over folds
        "each_fold": [
            round(float(metrics.balanced_accuracy(labels[rows], predicted[rows], once[:, rows])[0]), 6)
            for rows in table.groupby("fold").indices.values()
        ],
    }
