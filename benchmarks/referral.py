"""Which signal finds the errors on sessions that were not trained on, and what is wrong among what is then reported.

Of the answers that the folds of a recipe gave (`estimate.folds`, `dvc repro`): every image by a model that saw no group
of its own, at the temperature of the other folds. Signals that need training images take those whose embeddings
`pipeline.fold` kept. What the trainings of several seeds disagree on needs as many heads in a server, and on a frozen
base no second network.

Reads:  a recipe's folder: params.yaml, data/prepared, data/folds
Writes: benchmarks/results/referral.json, and prints the table
Run:    python -m benchmarks.referral --recipe recipes/all4_moments     (seconds)
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from benchmarks import training
from pipeline import params, stage
from pipeline.data import folds, prepared
from pipeline.model_file import calibration, out_of_fold
from pipeline.model_file.out_of_fold import OutOfFold
from pipeline.params import Params
from pipeline.stage import Problem

REFERRED = (0.03, 0.05, 0.10)
NEIGHBOURS, DISTANT = 15, 5  # training images: whose classes are counted, and how far the nearest are


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True, help="the folder that `dvc repro` ran in")
    options = parser.parse_args()
    os.chdir(options.recipe)
    recipe = params.load()
    if not recipe.estimate.folds:
        raise Problem(f"{options.recipe} has no folds: estimate.folds in its params.yaml is []")
    _, rows = prepared.read()
    labels = rows["label"].to_numpy()
    said = [out_of_fold.read(recipe, rows, "fp32", seed) for seed in recipe.estimate.seeds]
    trainings = np.stack([tempered(recipe, each, labels) for each in said])
    right = trainings[0].argmax(1) == labels
    found = {name: measured(score, right) for name, score in signals(recipe, said[0], trainings, rows).items()}
    stage.write_json(
        training.RESULTS / "referral.json", {"images": len(rows), "wrong": float(1 - right.mean()), **found}
    )
    print(
        f"{1 - right.mean():.3f} of {len(rows)} are wrong. Wrong among what is reported, by the share that is referred:"
    )
    print("| signal | AUROC of errors | " + " | ".join(f"{share:.0%}" for share in REFERRED) + " |")
    print("|---" * (2 + len(REFERRED)) + "|")
    for name, each in found.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in each.values()) + " |")


def measured(score: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """How well a score [N], higher for more doubt, finds the errors."""
    at = {f"{share:.0%}": float(1 - right[score <= np.quantile(score, 1 - share)].mean()) for share in REFERRED}
    return {"auroc": float(roc_auc_score(~right, score)), **at}


def tempered(recipe: Params, said: OutOfFold, labels: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] of one seed's trainings, each fold's at the temperature of the others."""
    probabilities = np.empty_like(said.logits)
    for one in recipe.estimate.folds:
        mine = said.fold == one
        temperature = calibration.fit_limits(said.logits[~mine], labels[~mine], recipe).temperature
        probabilities[mine] = softmax(said.logits[mine] / temperature, axis=1)
    return probabilities


def signals(recipe: Params, said: OutOfFold, trainings: np.ndarray, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Scores [N] of the first seed's answers, each higher for more doubt.

    Args:
        said: by the first seed's trainings.
        trainings: probabilities by all seeds', [seeds, N, C].
    """
    probabilities, n = trainings[0], len(rows)
    predicted = probabilities.argmax(1)
    ordered = np.sort(probabilities, axis=1)
    to_class, to_nearest, other = np.empty(n), np.empty(n), np.empty(n)
    for one in recipe.estimate.folds:
        path = folds.folder(one, recipe.estimate.seeds[0]) / "fp32.npz"
        with np.load(path) as arrays:
            classes = rows["label"].to_numpy()[arrays["seen_rows"]]
        mine = said.fold == one
        mean, deviation = said.seen[one].mean(0), said.seen[one].std(0) + 1e-6
        seen, asked = ((values - mean) / deviation for values in (said.seen[one], said.outputs["embedding"][mine]))
        space = calibration.fit_unlikeness(seen, classes, recipe.calibrate.components)
        to_class[mine] = calibration.unlikeness(asked, space)
        alike = unit(asked) @ unit(seen).T
        nearest = np.argsort(-alike, axis=1)
        other[mine] = (classes[nearest[:, :NEIGHBOURS]] != predicted[mine, None]).mean(1)
        to_nearest[mine] = -np.take_along_axis(alike, nearest[:, :DISTANT], axis=1).mean(1)
    found = {
        "confidence": 1 - ordered[:, -1],
        "margin to the second class": ordered[:, -2] - ordered[:, -1],
        "entropy": entropy(probabilities),
        "unlikeness, early features": said.outputs["unlikeness"],
        "late features, distance to the nearest class": to_class,
        "late features, distance to the nearest images": to_nearest,
        "late features, neighbours of another class": other,
        "confidence + neighbours": 1 - ordered[:, -1] + other,
    }
    if len(trainings) > 1:
        found["mean of the seeds' confidence in the answer"] = 1 - trainings.mean(0)[np.arange(n), predicted]
        found["disagreement of the seeds (mutual information)"] = disagreement(trainings)
    return found


def disagreement(trainings: np.ndarray) -> np.ndarray:
    """What knowing which training answered tells of the class, [N] in nats: the entropy of the mean of [seeds, N, C]
    less the mean of theirs (Houlsby et al. 2011, "Bayesian active learning by disagreement", eq. 2)."""
    return np.asarray(entropy(trainings.mean(0)) - entropy(trainings).mean(0))


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Of the last axis, in nats."""
    return np.asarray(-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(-1))


def unit(values: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


if __name__ == "__main__":
    stage.guard(main)
