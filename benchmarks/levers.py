"""What each training lever gains on held-out blocks: the same small training with it and without.

A cheap proxy for the recipe: every layer of a pretrained base, 64 px, 16 epochs of AdamW with a cosine rate to zero,
the last epoch's weights. It uses the training and validation blocks only, never the test blocks, in two folds: A holds
out the validation split; B the first blocks of each class, as many as validation has, with a block dropped after them.
Each fold has its own seed. What is fitted (stain, sharpness) is fitted on the fold's training images.

With --work an interrupted run resumes: each answer is a file there.

Reads:  a folder of the four classes, a file of weights (as benchmarks.training)
Writes: benchmarks/results/levers.json, and prints the table
Run:    python -m benchmarks.levers [--levers baseline focal …] [--work FOLDER]     (about 8 minutes a lever and fold)
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from benchmarks import dihedral, training
from leukdetect import images
from pipeline import params, stage
from pipeline.data import prepared
from pipeline.evaluation import metrics
from pipeline.network import classifier, frozen, views
from pipeline.network.training import Batches, class_weights
from pipeline.stage import Problem

SIZE, EPOCHS, BATCH, RATE, DECAY = 64, 16, 32, 6e-4, 0.01
EMA = 0.99
Pixels = Callable[[np.ndarray], np.ndarray]  # uint8 [N, S, S, 3] to the same


def nothing(pixels: np.ndarray) -> np.ndarray:
    return pixels


@dataclass(frozen=True)
class Lever:
    """One change of the proxy."""

    name: str
    fit: Callable[[np.ndarray], Pixels] = lambda train: nothing  # training images to the change of every image
    epoch: Callable[..., tuple[np.ndarray, np.ndarray]] = lambda rng, pixels, targets: (pixels, targets)
    loss: Callable[[], keras.losses.Loss] = keras.losses.CategoricalCrossentropy
    balanced: bool = True  # class weights


def reinhard(train: np.ndarray) -> Pixels:
    """Every image gets the training images' mean and SD in lαβ (Reinhard et al. 2001)."""
    lms = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    lab = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])

    def there(image: np.ndarray) -> np.ndarray:
        return np.log10((image.reshape(-1, 3) + 1.0) @ lms.T) @ lab.T

    target = np.mean([[each.mean(0), each.std(0)] for each in map(there, train)], axis=0)

    def back(image: np.ndarray) -> np.ndarray:
        values = there(image)
        values = (values - values.mean(0)) / (values.std(0) + 1e-6) * target[1] + target[0]
        rgb = 10 ** (values @ np.linalg.inv(lab).T) @ np.linalg.inv(lms).T - 1
        return np.clip(rgb.reshape(image.shape) + 0.5, 0, 255).astype(np.uint8)

    return lambda pixels: np.stack([back(image) for image in pixels])


def macenko(train: np.ndarray) -> Pixels:
    """Every image gets the training images' two stain vectors and their strengths (Macenko et al. 2009)."""

    def density(image: np.ndarray) -> np.ndarray:
        return -np.log((image.reshape(-1, 3) + 1.0) / 256)

    def stains(densities: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Unit vectors [2, 3] and each one's strength, the 99th percentile; None where next to nothing is stained."""
        stained = densities[(densities > 0.15).all(1)]
        if len(stained) < 100:
            return None
        plane = np.linalg.eigh(np.cov(stained.T))[1][:, 1:]
        plane = plane * np.where(plane.sum(0) < 0, -1, 1)
        angles = np.arctan2(*(stained @ plane).T)
        ends = [plane @ [np.sin(a), np.cos(a)] for a in np.quantile(angles, [0.01, 0.99])]
        vectors = np.array(sorted(ends, key=lambda end: -end[0]))
        strengths = np.quantile(np.linalg.lstsq(vectors.T, densities.T, rcond=None)[0], 0.99, axis=1)
        return vectors, np.maximum(strengths, 1e-3)

    target = stains(density(train[:: max(1, len(train) // 200)]))
    if target is None:
        raise Problem("the training images hold no stain to normalise to")
    vectors, strengths = target

    def back(image: np.ndarray) -> np.ndarray:
        densities = density(image)
        own = stains(densities)
        if own is None:
            return image
        amounts = np.linalg.lstsq(own[0].T, densities.T, rcond=None)[0] * (strengths / own[1])[:, None]
        return np.clip(256 * np.exp(-(vectors.T @ amounts).T) - 0.5, 0, 255).astype(np.uint8).reshape(image.shape)

    return lambda pixels: np.stack([back(image) for image in pixels])


def unsharpening(train: np.ndarray) -> Pixels:
    """Every image is sharpened until it is as sharp as the training images' median."""
    wanted = np.median([images.sharpness(image) for image in train])

    def sharper(image: np.ndarray) -> np.ndarray:
        for percent in range(0, 500, 50):
            again = np.asarray(Image.fromarray(image).filter(ImageFilter.UnsharpMask(1, percent, 0)))
            if images.sharpness(again) >= wanted:
                break
        return again

    return lambda pixels: np.stack([sharper(image) for image in pixels])


def stain_augmentation(
    rng: np.random.Generator, pixels: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each stain ± 0.1 in haematoxylin, eosin and DAB (Ruifrok and Johnston's vectors; Tellez et al. 2018)."""
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    amounts = -np.log((pixels + 1.0) / 256) @ np.linalg.inv(vectors)
    amounts = amounts * rng.uniform(0.9, 1.1, (len(pixels), 1, 1, 3)) + rng.uniform(-0.1, 0.1, (len(pixels), 1, 1, 3))
    return np.clip(256 * np.exp(-amounts @ vectors) - 0.5, 0, 255).astype(np.uint8), targets


def mixup(rng: np.random.Generator, pixels: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image mixed with another, and so their classes; the share from Beta(0.4, 0.4) (Zhang et al. 2018)."""
    other, share = rng.permutation(len(pixels)), rng.beta(0.4, 0.4, len(pixels)).astype(np.float32)
    wide = share[:, None, None, None]
    mixed = (wide * pixels + (1 - wide) * pixels[other] + 0.5).astype(np.uint8)
    return mixed, share[:, None] * targets + (1 - share[:, None]) * targets[other]


class Average(keras.callbacks.Callback):
    """The weights' moving average (EMA) over all fits; the optimizer's own would replace them at each fit's end."""

    def __init__(self, variables: list[keras.Variable]) -> None:
        super().__init__()
        self.variables, self.means = variables, [variable.numpy() for variable in variables]

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        for mean, variable in zip(self.means, self.variables, strict=True):
            mean += (1 - EMA) * (variable.numpy() - mean)

    def put_in_place(self) -> None:
        for mean, variable in zip(self.means, self.variables, strict=True):
            variable.assign(mean)


LEVERS = (
    Lever("baseline"),  # also answers with the EMA weights, and those averaged over the symmetries
    Lever("no class weights", balanced=False),
    Lever("focal loss instead", loss=lambda: keras.losses.CategoricalFocalCrossentropy(alpha=1.0), balanced=False),
    Lever("Macenko", fit=macenko),
    Lever("Reinhard", fit=reinhard),
    Lever("stain augmentation", epoch=stain_augmentation),
    Lever("MixUp", epoch=mixup),
    Lever("label smoothing", loss=lambda: keras.losses.CategoricalCrossentropy(label_smoothing=0.1)),
    Lever("unsharpening", fit=unsharpening),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=training.REAL, help="a folder of four classes")
    parser.add_argument("--weights", type=Path, default=training.WEIGHTS, help="a ResNet-50 without top")
    names = [each.name for each in LEVERS]
    parser.add_argument("--levers", nargs="+", choices=names, default=names, help="beside the baseline")
    parser.add_argument("--work", type=Path, help="keep what was made here, and go on from it")
    options = parser.parse_args()
    for path in (options.folder, options.weights):
        if not path.exists():
            raise Problem(f"{path} is absent; give --folder and --weights")
    chosen = [each for each in LEVERS if each.name in {"baseline", *options.levers}]
    with tempfile.TemporaryDirectory() as made:
        work = (options.work or Path(made)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        recipe = training.a_recipe(options.folder.resolve(), options.weights.resolve(), work, SIZE)
        training.write(recipe, work)
        if not (work / "data/prepared").is_dir():
            for name in ("fetch", "validate", "prepare"):
                training.run_stage(name, work)
        os.chdir(work)
        results = measure(chosen, work)
    stage.write_json(training.RESULTS / "levers.json", results)
    print(table(results))


def measure(levers: list[Lever], work: Path) -> dict[str, Any]:
    """Trains what has no answer in the work folder yet; balanced accuracies, and differences from the baseline."""
    recipe = params.load()
    pixels, rows = prepared.read()
    found: dict[str, Any] = {}
    for fold, seed in (("A", recipe.seed), ("B", recipe.seed + 1)):
        sides = split(rows, fold)
        held_out = rows[sides == "held out"]
        labels, groups = held_out["label"].to_numpy(), held_out["group"].to_numpy()
        weights = metrics.group_weights(labels, groups, recipe.evaluate.bootstrap, 0)
        baseline = np.empty(0)
        for lever in levers:
            path = work / f"{lever.name}-{fold}.npz"
            if not path.is_file():
                with stage.writing(path) as temporary, temporary.open("wb") as file:
                    np.savez(
                        file, allow_pickle=False, **train(recipe, pixels, rows[sides == "train"], held_out, lever, seed)
                    )
            with np.load(path) as saved:
                answers = {lever.name: saved["last"]} if lever.name != "baseline" else dict(saved)
            for name, answer in answers.items():
                values = metrics.balanced_accuracy(labels, answer.argmax(1), weights)
                baseline = values if lever.name == "baseline" and name == "last" else baseline
                name = "baseline" if name == "last" else name
                cell = {"value": metrics.estimate(values).__dict__, "seed": seed}
                cell["difference"] = metrics.estimate(values - baseline).__dict__
                found.setdefault(name, {})[fold] = cell
                print(f"{fold}, {name}: {values[0]:.3f}", flush=True)
    return found


def split(rows: pd.DataFrame, fold: str) -> pd.Series:
    """Each row's side, `train` or `held out`; others are in neither."""
    if fold == "A":
        return rows["split"].map({"train": "train", "val": "held out"})
    usable = rows[rows["split"].isin(["train", "val"])]
    sides = dict.fromkeys(usable["group"], "train")
    for _, of_class in usable.groupby("class"):
        names = sorted(set(of_class["group"]))
        count = of_class.loc[of_class["split"] == "val", "group"].nunique()
        sides |= dict.fromkeys(names[:count], "held out") | {names[count]: "dropped"}
    return rows["group"].map(sides).where(rows.index.isin(usable.index))


def train(
    recipe: params.Params, pixels: np.ndarray, known: pd.DataFrame, held_out: pd.DataFrame, lever: Lever, seed: int
) -> dict[str, np.ndarray]:
    """Probabilities [n, C] of the held-out images: by the last weights, by their average (EMA), and that over D4."""
    keras.utils.set_random_seed(seed)
    classes = len(recipe.classes)
    labels = known["label"].to_numpy()
    change = lever.fit(pixels[known.index])
    mine, asked = change(pixels[known.index]), change(pixels[held_out.index])
    weights = class_weights(labels, lever.balanced)

    part = classifier.trainable_part(frozen.base_model(recipe), None, classifier.precision())
    classifier.set_trainable(part, classifier.base_layers(part), batch_norm=True)
    rate = keras.optimizers.schedules.CosineDecay(RATE, -(-len(labels) // BATCH) * EPOCHS)
    part.compile(keras.optimizers.AdamW(rate, weight_decay=DECAY), lever.loss(), jit_compile=False)
    average = Average(part.trainable_variables)
    work = views.Work(recipe.augment, seed)
    for epoch in range(EPOCHS):
        rng = np.random.default_rng([seed, epoch])
        view = views.augmented(work, views.Batch(epoch, mine, known["sha256"].tolist()))
        inputs, targets = lever.epoch(rng, view, np.eye(classes, dtype=np.float32)[labels])
        batches = Batches(inputs, targets, weights, BATCH, rng.permutation(len(labels)))
        part.fit(batches, shuffle=False, verbose=0, callbacks=[average])
    answers = {"last": part.predict(asked, verbose=0)}
    average.put_in_place()
    answers["EMA of the weights"] = part.predict(asked, verbose=0)
    turned = [part.predict(each, verbose=0) for each in dihedral.symmetries(asked)]
    return answers | {"EMA, and D4 at test time": np.mean(turned, axis=0)}


def table(results: dict[str, Any]) -> str:
    lines = ["| lever | A | difference | B | difference |", "|---" * 5 + "|"]
    for name, folds in results.items():
        cells = []
        for cell in folds.values():
            difference = (
                "" if name == "baseline" else "{value:+.3f} [{low:.3f}, {high:.3f}]".format(**cell["difference"])
            )
            cells += [f"{cell['value']['value']:.3f}", difference]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    stage.guard(main)
