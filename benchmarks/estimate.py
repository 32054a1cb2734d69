"""Whether the out-of-fold estimate keeps what it promises, and how much of an embedding is session and not class.

The trial: a fifth of the groups is left out of everything. On the rest the estimate is made, out of fold, with its
interval over groups; a model learns from all the rest; then the left-out fifth is looked at, once. Five trials, each
with another fifth, so how often the interval holds is known to about a fifth. An interval over groups is of their mean;
a fifth of them scatters about it too, with five times the variance in all. By presets/all4_moments.yaml
with a linear head, which takes seconds.

The recipes: where the base ends, how its maps are pooled and which head reads them, each over five folds and three
seeds, every image held out once a seed; the base is frozen, as in phase 1. In all images the corner with the scale bar
is painted over. The same heads are asked again with the cells painted over: what they know then, the background told.

The sessions: a block of file numbers is about a session. Which share of the embedding's variance lies between classes,
between blocks of a class and within blocks; and how well a linear probe tells the block of an image among those of its
class, from other images of these blocks, beside what the largest block would give.

Reads:  a folder of four classes, a file of weights (as benchmarks.training)
Writes: benchmarks/results/estimate.json, and prints the tables
Run:    python -m benchmarks.estimate [--demo]     (about half an hour; --demo: on the demo's images, at 64 px)
        python -m benchmarks.estimate --recipe conv5_block3_out attention paper     (adds one to the file)
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from pipeline.evaluation import metrics, shortcuts
from pipeline.evaluation.answers import Sample
from pipeline.network import classifier, frozen, views
from pipeline.network.training import class_weights, compiled, rate
from pipeline.params import Params
from pipeline.stage import Problem

TRIALS = FOLDS = 5
CORNER = 0.18  # of the side: nobody is to read the scale bar
LAYERS = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
SEEDS = 3


class Variant(NamedTuple):
    """Of the recipe's `model`: the rest is the preset's."""

    last_layer: str
    pooling: str
    head: str


TRIED = Variant("conv3_block4_out", "moments", "linear")  # in the trials
VARIANTS = (
    Variant("conv5_block3_out", "average", "paper"),
    Variant("conv4_block6_out", "average", "paper"),
    Variant("conv3_block4_out", "average", "paper"),
    Variant("conv3_block4_out", "moments", "paper"),
    TRIED,
    Variant("conv2_block3_out", "moments", "linear"),
)  # those with attention learn from whole maps and take an hour: `--recipe` adds them


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=training.REAL, help="a folder of four classes")
    parser.add_argument("--weights", type=Path, default=training.WEIGHTS, help="a ResNet-50 without top")
    parser.add_argument("--demo", action="store_true", help="on rendered smears of virtual patients, at 64 px")
    parser.add_argument(
        "--recipe", nargs=3, action="append", metavar=Variant._fields, help="only this one, and further ones so named"
    )
    parser.add_argument("--epochs", type=int, help="of the head; with --recipe; else the preset's")
    options = parser.parse_args()
    if options.epochs is not None and (options.epochs < 1 or not options.recipe):
        parser.error("--epochs is a number from 1 on, and of a --recipe")
    needed = [options.weights] if options.demo else [options.folder, options.weights]
    if absent := [str(path) for path in needed if not path.exists()]:
        raise Problem(f"{' and '.join(absent)}: absent, so nothing is estimated; give --folder and --weights")
    written = training.RESULTS / ("estimate-demo.json" if options.demo else "estimate.json")
    known = json.loads(written.read_text()) if written.is_file() else {}
    if options.recipe and known.get("weights") != options.weights.name:
        raise Problem(
            f"{written}: not of {options.weights.name}, so there is nothing to add to; run it without --recipe"
        )
    variants = tuple(Variant(*each) for each in options.recipe or VARIANTS)
    layers = () if options.recipe else LAYERS
    with tempfile.TemporaryDirectory() as made:
        work, weights = Path(made), options.weights.resolve()
        os.chdir(training.ROOT)
        own = recipe_of(options.folder.resolve(), weights, work, options.demo)
        own["train_head"]["epochs"] = epochs = options.epochs or own["train_head"]["epochs"]
        for variant in variants:
            params.parse(own | {"model": own["model"] | variant._asdict()})  # refuses what no recipe may say
        training.write(own, work)
        for name in ("fetch", "validate", "prepare"):
            training.run_stage(name, work)
        os.chdir(work)
        pixels, rows = prepared.read()
        pixels = shortcuts.mask_corner(pixels, CORNER)
        recipe = params.load()
        every = np.arange(len(rows))
        sample = Sample(pixels, rows["label"].to_numpy(), every, np.ones((1, len(rows))))
        painted = shortcuts.experiments(sample, CORNER)["cells_masked"](every)
        asked = dict.fromkeys(variant[:2] for variant in variants)
        blind = {each: features(recipe, Variant(*each, head="linear"), painted) for each in asked}
        asked |= dict.fromkeys((layer, "moments") for layer in layers)
        found = {each: features(recipe, Variant(*each, head="linear"), pixels) for each in asked}
        recipes = {
            f"{' '.join(each)}, {epochs} epochs": compared(each, found[each[:2]], blind[each[:2]], rows, recipe)
            for each in variants
        }
    if options.recipe:
        result = known | {"recipes": known["recipes"] | recipes}
    else:
        result = {
            "weights": options.weights.name,
            "sessions": {layer: session(found[layer, "moments"], rows, recipe) for layer in layers},
            "trials": [trial(number, found[TRIED[:2]], rows, recipe) for number in range(TRIALS)],
            "recipes": recipes,
        }
    stage.write_json(written, result)
    print(tables(result))


def recipe_of(folder: Path, weights: Path, work: Path, demo: bool) -> dict[str, Any]:
    """The preset's recipe, on the images of a folder or the demo's."""
    made = training.a_recipe(work / "absent" if demo else folder, weights, work, 64 if demo else 224)
    own = params.load(training.ROOT / "presets/all4_moments.yaml").model_dump(mode="json", by_alias=True)
    return made | {name: own[name] for name in ("estimate", "model", "augment", "train_head", "fine_tune")}


def features(recipe: Params, variant: Variant, pixels: np.ndarray) -> np.ndarray:
    """What a variant's head learns from, of uint8 [N, S, S, 3]: embeddings [N, D], or maps [N, h, w, D] in float16."""
    whole = network(recipe, variant, pixels.shape[1])
    name, tensor = classifier.head_input(whole)
    run = views.session(frozen.graph(whole, {name: tensor}), cpus())
    dtype = np.float16 if name == "maps" else np.float32
    starts = stage.progress(range(0, len(pixels), 32), variant.last_layer, unit="batch")
    return np.concatenate([run(pixels[start : start + 32])[name].astype(dtype) for start in starts])


def network(recipe: Params, variant: Variant, size: int) -> keras.Model:
    """The base up to a layer with a new head, for images of that many pixels a side."""
    whole = classifier.build(size, len(recipe.classes), "ResNet50", variant.pooling, variant.last_layer, variant.head)
    classifier.load_base_weights(whole, recipe.features.weights)
    return whole


def compared(
    variant: Variant, values: np.ndarray, blind: np.ndarray, rows: pd.DataFrame, recipe: Params
) -> dict[str, Any]:
    """Out of fold by each seed: balanced accuracy over all images, of each fold, and each class's recall.

    `values` are of the images, `blind` of the same with the cells painted over.
    """
    labels, keys = rows["label"].to_numpy(), [c.key for c in recipe.classes]
    sides = folds.held_out(rows, recipe.prepare, FOLDS, recipe.seed).to_numpy()
    weights = metrics.group_weights(labels, rows["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
    malignant = np.array([c.malignant for c in recipe.classes])
    values_of, blind_of, each_fold, right = [], [], [], np.zeros((SEEDS, len(rows)), bool)
    missed = np.zeros(len(rows))
    for seed in range(SEEDS):
        predicted, guessed = np.full((2, len(rows)), -1)
        for fold, side in enumerate(sides.T):
            asked, learns = np.flatnonzero(side == "test"), np.flatnonzero(side == "train")
            turn = 100 * (seed + 1) + fold
            known = values[learns], labels[learns], class_weights(labels[learns], recipe.train_head.class_weights)
            said = answers(recipe, variant, known, [values[asked], blind[asked]], turn)
            predicted[asked], guessed[asked] = (each.argmax(1) for each in said)
            each_fold.append(
                float(metrics.balanced_accuracy(labels[asked], predicted[asked], np.ones((1, len(asked))))[0])
            )
        values_of.append(metrics.balanced_accuracy(labels, predicted, weights))
        blind_of.append(metrics.balanced_accuracy(labels, guessed, weights))
        right[seed] = predicted == labels
        missed += (malignant[labels] & ~malignant[predicted]) / SEEDS
    print(variant, [f"{each[0]:.3f}" for each in values_of], flush=True)
    return {
        "balanced_accuracy": metrics.estimate(np.mean(values_of, axis=0)).__dict__,
        "cells_masked": metrics.estimate(np.mean(blind_of, axis=0)).__dict__,
        "seeds": [float(each[0]) for each in values_of],
        "folds": [min(each_fold), max(each_fold)],
        "recalls": {key: float(right[:, labels == i].mean()) for i, key in enumerate(keys)},
        "malignant_called_otherwise": float(missed[malignant[labels]].mean()),
    }


def trial(number: int, values: np.ndarray, rows: pd.DataFrame, recipe: Params) -> dict[str, Any]:
    """The estimate on all but one fifth, and what that fifth gives."""
    outer = folds.held_out(rows, recipe.prepare, TRIALS, recipe.seed)[str(number)].to_numpy()
    kept = np.flatnonzero(outer == "train")
    inner, labels = rows.iloc[kept].reset_index(drop=True), rows["label"].to_numpy()
    predicted = np.full(len(rows), -1)

    def ask(learns: np.ndarray, asked: np.ndarray, turn: int) -> None:
        known = values[learns], labels[learns], class_weights(labels[learns], recipe.train_head.class_weights)
        predicted[asked] = answers(recipe, TRIED, known, [values[asked]], turn)[0].argmax(1)

    for fold, side in enumerate(folds.held_out(inner, recipe.prepare, FOLDS, recipe.seed).to_numpy().T):
        ask(kept[side == "train"], kept[side == "test"], fold)
    left = np.flatnonzero(outer == "test")
    ask(kept, left, FOLDS)
    promised, kept_to = (interval(rows.iloc[some], predicted[some], recipe) for some in (kept, left))
    print(f"trial {number}: promised {promised}, then {kept_to} on {len(left)} images", flush=True)
    groups = rows["group"].iloc[left].nunique()
    return {"promised": promised.__dict__, "found": kept_to.__dict__, "groups": groups}


def answers(
    recipe: Params, variant: Variant, train: Sequence[np.ndarray], asked: Sequence[np.ndarray], turn: int
) -> list[np.ndarray]:
    """Probabilities [n, C] that a head gives each of `asked` once it has learnt `train`: values, labels and weights."""
    keras.utils.set_random_seed(recipe.seed + turn)
    whole, phase = network(recipe, variant, recipe.prepare.image_size), recipe.train_head
    values, labels, weights = train
    head = compiled(
        keras.Model(classifier.head_input(whole)[1], whole.output), keras.optimizers.Adam(rate(phase, len(labels)))
    )
    head.fit(values, labels, phase.batch_size, phase.epochs, verbose=0, sample_weight=weights)
    return [np.asarray(head.predict(each, verbose=0)) for each in asked]


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


def tables(result: dict[str, Any]) -> str:
    """All three in Markdown."""
    lines = [
        "| trial | out of fold on the rest | on what was left out | groups | in the mean's interval | in a fifth's |"
    ]
    lines += ["|---" * 6 + "|"]
    for number, each in enumerate(result["trials"]):
        promised, found = metrics.Estimate(**each["promised"]), metrics.Estimate(**each["found"])
        of_mean, of_fifth = (
            f"{'yes' if one.low <= found.value <= one.high else 'no'} ({one.low:.3f} to {one.high:.3f})"
            for one in (promised, promised.of_further(TRIALS - 1))
        )
        lines.append(f"| {number} | {promised} | {found} | {each['groups']} | {of_mean} | {of_fifth} |")
    head = "| base up to, pooling, head | balanced accuracy | cells painted over | seeds | folds | recalls | missed |"
    lines += ["", head, "|---" * 7 + "|"]
    for name, each in result["recipes"].items():
        seeds = ", ".join(f"{value:.3f}" for value in each["seeds"])
        recalls = ", ".join(f"{key} {value:.3f}" for key, value in each["recalls"].items())
        low, high = each["folds"]
        found, blind = metrics.Estimate(**each["balanced_accuracy"]), metrics.Estimate(**each["cells_masked"])
        missed = each["malignant_called_otherwise"]
        lines.append(f"| {name} | {found} | {blind} | {seeds} | {low:.3f} to {high:.3f} | {recalls} | {missed:.3f} |")
    head = "| layer | between classes | between blocks of a class | within blocks | block told | largest block |"
    lines += ["", head, "|---" * 6 + "|"]
    shown = ("classes", "blocks_of_a_class", "within_blocks", "block_told", "largest_block")
    for layer, each in result["sessions"].items():
        lines.append(f"| {layer} | " + " | ".join(f"{each[name]:.2f}" for name in shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    stage.guard(main)
