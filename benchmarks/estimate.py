"""Whether the out-of-fold estimate keeps what it promises, and how much of an embedding is session and not class.

The trial: a fifth of the groups is left out of everything. On the rest the estimate is made, out of fold, with its
interval over groups; a model learns from all the rest; then the left-out fifth is looked at, once. Five trials, each
with another fifth, so how often the interval holds is known to about a fifth. The model is a head on a frozen base that
ends at --layer (`model.last_layer`, with `pooling: moments`), since that trains in seconds.

The sessions: a block of file numbers is about a session. Which share of the embedding's variance lies between classes,
between blocks of a class and within blocks; and how well a linear probe tells the block of an image among those of its
class, from other images of these blocks, beside what the largest block would give.

Reads:  a folder of four classes, a file of weights (as benchmarks.training)
Writes: benchmarks/results/estimate.json, and prints the tables
Run:    python -m benchmarks.estimate [--demo]     (about 10 minutes; --demo: on the demo's images, at 64 px)
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import training
from leukdetect.runtime import cpus
from pipeline import params, stage
from pipeline.data import folds, prepared, splits
from pipeline.evaluation import metrics
from pipeline.network import classifier, frozen, views
from pipeline.network.training import class_weights, compiled, rate
from pipeline.params import Params
from pipeline.stage import Problem

TRIALS = FOLDS = 5
LAYERS = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
PHASE = {"epochs": 30, "schedule": "cosine"}  # of the head; the rest is the preset's


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=training.REAL, help="a folder of four classes")
    parser.add_argument("--weights", type=Path, default=training.WEIGHTS, help="a ResNet-50 without top")
    parser.add_argument("--layer", default="conv3_block4_out", help="where the base ends in the trial")
    parser.add_argument("--demo", action="store_true", help="on rendered smears of virtual patients, at 64 px")
    options = parser.parse_args()
    needed = [options.weights] if options.demo else [options.folder, options.weights]
    if absent := [str(path) for path in needed if not path.exists()]:
        raise Problem(f"{' and '.join(absent)}: absent, so nothing is estimated; give --folder and --weights")
    with tempfile.TemporaryDirectory() as made:
        work, weights = Path(made), options.weights.resolve()
        os.chdir(training.ROOT)
        training.write(recipe_of(options.folder.resolve(), weights, work, options.demo), work)
        for name in ("fetch", "validate", "prepare"):
            training.run_stage(name, work)
        os.chdir(work)
        pixels, rows = prepared.read()
        recipe = params.load()
        found = {layer: moments(recipe, layer, pixels) for layer in dict.fromkeys((*LAYERS, options.layer))}
    sessions = {layer: session(found[layer], rows, recipe) for layer in LAYERS}
    trials = [trial(number, found[options.layer], rows, recipe, options.layer) for number in range(TRIALS)]
    name = "estimate-demo" if options.demo else "estimate"
    stage.write_json(training.RESULTS / f"{name}.json", {"trials": trials, "sessions": sessions})
    print(tables(trials, sessions))


def recipe_of(folder: Path, weights: Path, work: Path, demo: bool) -> dict[str, Any]:
    """The preset's recipe, with every image in the folds."""
    made = training.a_recipe(work / "absent" if demo else folder, weights, work, 64 if demo else 224)
    made["train_head"] |= PHASE
    made["estimate"] = {"folds": list(range(FOLDS)), "seeds": [made["seed"]]}
    return made


def moments(recipe: Params, layer: str, pixels: np.ndarray) -> np.ndarray:
    """Mean and deviation of a layer's maps, float32 [N, 2 D], of uint8 [N, S, S, 3]."""
    whole = network(recipe, layer)
    run = views.session(frozen.graph(whole, {"pooled": classifier.embedding(whole)}), cpus())
    starts = stage.progress(range(0, len(pixels), 32), layer, unit="batch")
    return np.concatenate([run(pixels[start : start + 32])["pooled"] for start in starts])


def network(recipe: Params, layer: str) -> keras.Model:
    """The base up to a layer with a new head."""
    size = recipe.prepare.image_size
    whole = classifier.build(size, len(recipe.classes), "ResNet50", "moments", layer)
    classifier.load_base_weights(whole, recipe.features.weights)
    return whole


def trial(number: int, values: np.ndarray, rows: pd.DataFrame, recipe: Params, layer: str) -> dict[str, Any]:
    """The estimate on all but one fifth, and what that fifth gives."""
    outer = folds.held_out(rows, recipe.prepare, TRIALS, recipe.seed)[str(number)].to_numpy()
    kept = np.flatnonzero(outer == "train")
    inner, labels = rows.iloc[kept].reset_index(drop=True), rows["label"].to_numpy()
    predicted = np.full(len(rows), -1)
    for fold, side in enumerate(folds.held_out(inner, recipe.prepare, FOLDS, recipe.seed).to_numpy().T):
        learns, asked = kept[side == "train"], kept[side == "test"]
        predicted[asked] = answers(recipe, layer, values, labels, learns, asked, fold)
    left = np.flatnonzero(outer == "test")
    predicted[left] = answers(recipe, layer, values, labels, kept, left, FOLDS)
    promised, kept_to = (interval(rows.iloc[some], predicted[some], recipe) for some in (kept, left))
    holds = promised.low <= kept_to.value <= promised.high
    print(f"trial {number}: promised {promised}, then {kept_to} on {len(left)} images", flush=True)
    groups = rows["group"].iloc[left].nunique()
    return {"promised": promised.__dict__, "found": kept_to.__dict__, "holds": holds, "groups": groups}


def answers(
    recipe: Params, layer: str, values: np.ndarray, labels: np.ndarray, learns: np.ndarray, asked: np.ndarray, turn: int
) -> np.ndarray:
    """Classes that a head gives the rows `asked` after it learnt the rows `learns`, as phase 1 trains it."""
    keras.utils.set_random_seed(recipe.seed + turn)
    whole, phase = network(recipe, layer), recipe.train_head
    head = compiled(
        keras.Model(classifier.embedding(whole), whole.output), keras.optimizers.Adam(rate(phase, len(learns)))
    )
    known = labels[learns]
    weights = class_weights(known, phase.class_weights)
    head.fit(values[learns], known, phase.batch_size, phase.epochs, verbose=0, sample_weight=weights)
    return np.asarray(head.predict(values[asked], verbose=0).argmax(1))


def interval(rows: pd.DataFrame, predicted: np.ndarray, recipe: Params) -> metrics.Estimate:
    """Balanced accuracy with its interval over groups."""
    labels = rows["label"].to_numpy()
    weights = metrics.group_weights(labels, rows["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
    return metrics.estimate(metrics.balanced_accuracy(labels, predicted, weights))


def session(values: np.ndarray, rows: pd.DataFrame, recipe: Params) -> dict[str, float]:
    """Shares of the standardised variance, and the probe of the block, as means over the classes."""
    scaled = StandardScaler().fit_transform(values)
    blocks = rows["group"] if recipe.prepare.patient else splits.block_numbers(rows["path"], recipe.prepare)
    names = rows["class"] + "-" + pd.Series(blocks, rows.index).astype(str)

    def between(by: pd.Series) -> float:
        return float(pd.DataFrame(scaled).groupby(by.to_numpy()).transform("mean").to_numpy().var())

    told, largest = [], []
    for _, mine in names.groupby(rows["class"]):
        where = np.random.default_rng(recipe.seed).permutation(len(mine))
        learns, asked = mine.index[where[::2]], mine.index[where[1::2]]
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, tol=0.01))
        probe.fit(values[learns], mine[learns])
        told.append(float((probe.predict(values[asked]) == mine[asked]).mean()))
        largest.append(float(mine.value_counts(normalize=True).iloc[0]))
    total, of_class, of_block = float(scaled.var()), between(rows["class"]), between(names)
    return {
        "classes": of_class / total,
        "blocks_of_a_class": (of_block - of_class) / total,
        "within_blocks": 1 - of_block / total,
        "block_told": float(np.mean(told)),
        "largest_block": float(np.mean(largest)),
    }


def tables(trials: list[dict[str, Any]], sessions: dict[str, dict[str, float]]) -> str:
    """Both results in Markdown."""
    said = "{value:.3f} [{low:.3f}, {high:.3f}]".format
    lines = ["| trial | promised out of fold | on what was left out | groups | holds |", "|---" * 5 + "|"]
    for number, each in enumerate(trials):
        holds = "yes" if each["holds"] else "no"
        lines.append(
            f"| {number} | {said(**each['promised'])} | {said(**each['found'])} | {each['groups']} | {holds} |"
        )
    lines += [
        "",
        "| layer | between classes | between blocks of a class | within blocks | block told | largest block |",
    ]
    lines += ["|---" * 6 + "|"]
    lines += [
        f"| {layer} | " + " | ".join(f"{value:.2f}" for value in each.values()) + " |"
        for layer, each in sessions.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    stage.guard(main)
