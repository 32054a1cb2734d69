"""What each lever against sessions gains out of fold: presets/all4_moments.yaml, no stain drawn, with it and without.

Sessions are what the errors have in common, so each lever changes what the head learns of them, or what it is asked:
five folds and three seeds, every image held out once a seed, all in the same folds with the same first weights and as
many steps. Differences are paired with the recipe's own answers. The base is frozen; in all images the corner with the
scale bar is painted over. "Cells painted over" asks the same heads again: what they know then, the background told.

Three know a few numbers of the images that are held out: Reinhard's and Macenko's bring all images to one stain, fitted
on all of them, and the stain that is drawn lies between two blocks of a class, of all blocks. Where these gain they
might gain a little less.

Reads:  a folder of four classes, a file of weights (as benchmarks.training)
Writes: benchmarks/results/levers.json, and prints the table
Run:    python -m benchmarks.levers [--layer conv3_block4_out] [--levers Reinhard …]     (about an hour for all)
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import dihedral, estimate, stains, training
from pipeline import params, stage
from pipeline.data import folds, prepared
from pipeline.evaluation import metrics, shortcuts
from pipeline.evaluation.answers import Sample
from pipeline.network import stain, views
from pipeline.network.training import class_weights
from pipeline.params import Params
from pipeline.stage import Problem

LAYER = "conv3_block4_out"  # where the base ends, unless told
BASELINE, TOGETHER = "the recipe", "mean of the three seeds' heads"
PLAIN, BLIND = "plain", "cells painted over: "
Change = Callable[[np.ndarray], np.ndarray]  # uint8 [N, S, S, 3] to the same


class Lever(NamedTuple):
    """By the names of `changes`."""

    learns: tuple[str, ...] = (PLAIN,)  # copies of each training image
    asked: tuple[str, ...] = (PLAIN,)  # copies of each image that is asked about; their answers are averaged
    weight: str = "class"  # what has the same weight in the loss: every class, or session of a class, or image


DRAWN = ("stain drawn, 1", "stain drawn, 2")
VIEWS = tuple(f"view {number}" for number in range(5))  # as many as the preset has
LARGE, WHITE = "twice as large", "white"  # and, with one of `DRAWN` before it, the same of that copy
QUARTERS = tuple(f"quarter {number}" for number in range(4))
TURNED = (PLAIN, *(f"turned {number}" for number in range(1, 8)))
LEVERS = {
    BASELINE: Lever(),
    "no class weights": Lever(weight="image"),
    "sessions of equal weight": Lever(weight="session"),
    "stain drawn from between sessions": Lever(learns=(PLAIN, *DRAWN)),
    "the preset's views": Lever(learns=VIEWS),
    "Reinhard": Lever(("Reinhard",), ("Reinhard",)),
    "Macenko": Lever(("Macenko",), ("Macenko",)),
    "background balanced to one white": Lever((WHITE,), (WHITE,)),
    "the same, stain drawn before": Lever((WHITE, *(f"{name}, {WHITE}" for name in DRAWN)), (WHITE,)),
    "a copy with the background painted over": Lever(learns=(PLAIN, "cells alone")),
    "cells alone": Lever(("cells alone",), ("cells alone",)),
    "quarters enlarged, averaged": Lever(QUARTERS, QUARTERS),
    "images enlarged": Lever((LARGE,), (LARGE,)),
    "images enlarged, stain drawn": Lever((LARGE, *(f"{name}, {LARGE}" for name in DRAWN)), (LARGE,)),
    "D4 learnt, one answer": Lever(learns=TURNED),
    "D4 learnt and averaged": Lever(TURNED, TURNED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=training.REAL, help="a folder of four classes")
    parser.add_argument("--weights", type=Path, default=training.WEIGHTS, help="a ResNet-50 without top")
    parser.add_argument("--layer", default=LAYER, help="where the base ends")
    parser.add_argument(
        "--levers",
        nargs="+",
        choices=list(LEVERS),
        default=list(LEVERS),
        help="beside the recipe; others stay in the file",
    )
    options = parser.parse_args()
    if absent := [str(path) for path in (options.folder, options.weights) if not path.exists()]:
        raise Problem(f"{' and '.join(absent)}: absent, so nothing is measured; give --folder and --weights")
    chosen = {name: LEVERS[name] for name in LEVERS if name in {BASELINE, *options.levers}}
    with tempfile.TemporaryDirectory() as made:
        work, weights = Path(made), options.weights.resolve()
        os.chdir(training.ROOT)
        own = estimate.recipe_of(options.folder.resolve(), weights, work, demo=False)
        own["model"]["last_layer"] = options.layer
        training.write(own, work)
        for name in ("fetch", "validate", "prepare"):
            training.run_stage(name, work)
        os.chdir(work)
        pixels, rows = prepared.read()
        pixels = shortcuts.mask_corner(pixels, estimate.CORNER)
        known = colours(pixels)
        shift, log_ratio = stains.spread(known, rows)
        print(f"between two sessions of a class: {shift.round(4)} in mean l, α and β, {log_ratio.round(3)} in log SD")
        values = features(chosen, pixels, rows, known, params.load())
        result = measured(chosen, values, rows, params.load())
    write(weights.name, {"shift": shift.tolist(), "log_ratio": log_ratio.tolist()}, options.layer, result)
    print(table(result))


def write(weights: str, spread: dict[str, Any], layer: str, result: dict[str, Any]) -> None:
    """Adds to the file what was measured now; what it holds of other weights goes."""
    path = training.RESULTS / "levers.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    kept = before["layers"] if before.get("weights") == weights else {}
    layers = kept | {layer: kept.get(layer, {}) | result}
    stage.write_json(path, {"weights": weights, "spread": spread, "layers": layers})


def features(
    levers: dict[str, Lever], pixels: np.ndarray, rows: pd.DataFrame, known: np.ndarray, recipe: Params
) -> dict[str, np.ndarray]:
    """What the head learns from, [N, D], of every copy that the levers name; and with the cells painted over, where a
    lever asks one copy that can be made of such an image."""
    every = np.arange(len(rows))
    audit = shortcuts.experiments(Sample(pixels, rows["label"].to_numpy(), every, np.ones((1, len(rows)))), 0.0)
    painted = audit["cells_masked"](every)
    made = changes(pixels, rows, known) | {"cells alone": lambda _: audit["background_median"](every)}
    made |= {name: partial(viewed, recipe, rows["sha256"].tolist(), number) for number, name in enumerate(VIEWS)}
    found = {}
    for name in dict.fromkeys(copy for lever in levers.values() for copy in (*lever.learns, *lever.asked)):
        print(name, flush=True)
        found[name] = estimate.features(recipe, variant(recipe), made[name](pixels))
        if name != "cells alone" and (name,) in {lever.asked for lever in levers.values()}:
            found[BLIND + name] = estimate.features(recipe, variant(recipe), made[name](painted))
    return found


def changes(pixels: np.ndarray, rows: pd.DataFrame, known: np.ndarray) -> dict[str, Change]:
    """The copies of images, by name, in the order of `rows`; `known`: their `colours`."""
    made: dict[str, Change] = {
        PLAIN: lambda images: images,
        "Reinhard": partial(stains.reinhard, target=known.mean(0)),
        "Macenko": partial(stains.macenko, target=stains.found(stains.density(pixels[:: max(1, len(pixels) // 200)]))),
        WHITE: stains.white,
        LARGE: enlarged,
    }
    for seed, name in enumerate(DRAWN):
        made[name] = partial(stains.drawn, moves=stains.moves(known, rows, np.random.default_rng(seed)))
        for then in (WHITE, LARGE):
            made[f"{name}, {then}"] = partial(_one_then_other, made[name], made[then])
    for number, name in enumerate(QUARTERS):
        made[name] = partial(quarter, number=number)
    for number, name in enumerate(TURNED[1:], 1):
        made[name] = partial(turned, number=number)
    return made


def _one_then_other(one: Change, other: Change, images: np.ndarray) -> np.ndarray:
    return other(one(images))


def variant(recipe: Params) -> estimate.Variant:
    return estimate.Variant(str(recipe.model.last_layer), recipe.model.pooling, recipe.model.head)


def colours(pixels: np.ndarray) -> np.ndarray:
    """Mean and SD of l, α and β of each image, [N, 2, 3]."""
    return np.array([[each.mean(0), each.std(0)] for each in map(stain.to_lab, pixels)])


def measured(
    levers: dict[str, Lever], values: dict[str, np.ndarray], rows: pd.DataFrame, recipe: Params
) -> dict[str, Any]:
    """Balanced accuracy out of fold, its difference from the recipe's, and what is told of the background."""
    labels = rows["label"].to_numpy()
    sides = folds.held_out(rows, recipe.prepare, estimate.FOLDS, recipe.seed).to_numpy()
    resamples = metrics.group_weights(labels, rows["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
    found: dict[str, Any] = {}
    baseline = np.empty(0)

    def add(name: str, probabilities: np.ndarray, blind: np.ndarray | None) -> None:
        nonlocal baseline
        accuracies = np.array([metrics.balanced_accuracy(labels, p.argmax(1), resamples) for p in probabilities])
        baseline = accuracies if name == BASELINE else baseline
        differences = accuracies - (baseline if len(accuracies) > 1 else baseline.mean(0))
        told = [metrics.balanced_accuracy(labels, p.argmax(1), resamples) for p in ([] if blind is None else blind)]
        benign = probabilities.argmax(2)[:, labels == 0] == 0
        found[name] = {
            "balanced_accuracy": metrics.estimate(accuracies.mean(0)).__dict__,
            "difference": metrics.estimate(differences.mean(0)).__dict__,
            "seeds": [float(each[0]) for each in differences],
            "benign": float(benign.mean()),
            "cells_masked": metrics.estimate(np.mean(told, axis=0)).__dict__ if told else None,
        }
        print(f"{name}: {found[name]['balanced_accuracy']['value']:.3f}", flush=True)

    for name, lever in levers.items():
        probabilities, blind = answers(lever, values, rows, sides, recipe)
        add(name, probabilities, blind)
        if name == BASELINE:
            add(TOGETHER, probabilities.mean(0, keepdims=True), None if blind is None else blind.mean(0, keepdims=True))
    return found


def answers(
    lever: Lever, values: dict[str, np.ndarray], rows: pd.DataFrame, sides: np.ndarray, recipe: Params
) -> tuple[np.ndarray, np.ndarray | None]:
    """Probabilities [seeds, N, C] by heads that saw no group of an image; and those with the cells painted over."""
    labels, copies = rows["label"].to_numpy(), len(lever.learns)
    phase = recipe.train_head.model_copy(update={"epochs": max(1, recipe.train_head.epochs // copies)})
    own = recipe.model_copy(update={"train_head": phase})
    names = [*lever.asked, *(BLIND + name for name in lever.asked)]
    names = [name for name in names if name in values]
    found = np.zeros((len(names), estimate.SEEDS, len(rows), len(recipe.classes)))
    for seed in range(estimate.SEEDS):
        for fold, side in enumerate(sides.T):
            learns, asked = (np.flatnonzero(side == which) for which in ("train", "test"))
            known = np.concatenate([values[name][learns] for name in lever.learns])
            weights = np.tile(loss_weights(lever.weight, rows.iloc[learns]), copies)
            train = known, np.tile(labels[learns], copies), weights
            turn = 100 * (seed + 1) + fold
            copied = [values[name][asked] for name in names]
            found[:, seed, asked] = estimate.answers(own, variant(own), train, copied, turn)
    blind = found[len(lever.asked) :]
    return found[: len(lever.asked)].mean(0), blind.mean(0) if len(blind) else None


def loss_weights(of: str, rows: pd.DataFrame) -> np.ndarray:
    """Weights [N] with a mean of 1 that give each class, each session of each class, or each image the same sum."""
    if of != "session":
        return class_weights(rows["label"].to_numpy(), of == "class")
    sizes = rows.groupby("group")["label"].transform("size")
    sessions = rows.groupby("label")["group"].transform("nunique")
    return (len(rows) / rows["label"].nunique() / sessions / sizes).to_numpy()


def viewed(recipe: Params, hashes: list[str], number: int, images: np.ndarray) -> np.ndarray:
    """A view of each image, as the recipe's training draws it."""
    work = views.Work(recipe.augment, recipe.seed)
    return views.augmented(work, views.Batch(number, images, hashes))


def quarter(images: np.ndarray, number: int) -> np.ndarray:
    """One quarter of each image at the whole image's size: cells twice as large."""
    side = images.shape[1]
    top, left = (np.array(divmod(number, 2)) * side // 2).tolist()
    return _resized(images, side, (left, top, left + side // 2, top + side // 2))


def enlarged(images: np.ndarray) -> np.ndarray:
    """Each image at twice its side: [N, 2 S, 2 S, 3]."""
    side = images.shape[1]
    return _resized(images, 2 * side, (0, 0, side, side))


def _resized(images: np.ndarray, side: int, box: tuple[int, int, int, int]) -> np.ndarray:
    pictures = map(Image.fromarray, images)
    return np.stack([np.asarray(each.resize((side, side), Image.Resampling.BICUBIC, box)) for each in pictures])


def turned(images: np.ndarray, number: int) -> np.ndarray:
    """The square's symmetry of that number."""
    return next(each for index, each in enumerate(dihedral.symmetries(images)) if index == number)


def table(result: dict[str, Any]) -> str:
    lines = [
        "| lever | balanced accuracy | difference | of each seed | benign | cells painted over |",
        "|---" * 6 + "|",
    ]
    for name, each in result.items():
        found, difference = metrics.Estimate(**each["balanced_accuracy"]), metrics.Estimate(**each["difference"])
        said = "" if name == BASELINE else f"{difference.value:+.3f} [{difference.low:.3f}, {difference.high:.3f}]"
        seeds = "" if name == BASELINE else ", ".join(f"{value:+.3f}" for value in each["seeds"])
        blind = metrics.Estimate(**each["cells_masked"]) if each["cells_masked"] else ""
        lines.append(f"| {name} | {found} | {said} | {seeds} | {each['benign']:.3f} | {blind} |")
    return "\n".join(lines)


if __name__ == "__main__":
    stage.guard(main)
