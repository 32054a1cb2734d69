"""How much a base knows of the four classes before it learns them: linear probes of its layers.

Features of each layer, pooled over the whole image at 224 px, standardised; logistic regression on grouped folds of
the training blocks alone (blocks of neighbouring file numbers, one dropped at each boundary), so that a probe has seen
nothing of the session that it is asked about. Validation and test blocks stay unseen.

Reads:  a folder of the four classes, files of weights (as benchmarks.training)
Writes: benchmarks/results/probe.json, and prints the table
Run:    python -m benchmarks.probe --weights FILE … [--layer conv5_block3_out …]     (about two minutes a file)
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
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
from pipeline.data import folds, prepared
from pipeline.evaluation import metrics
from pipeline.network import classifier, frozen, views
from pipeline.network.backbones import BACKBONES
from pipeline.params import Params
from pipeline.stage import Problem

SIZE, BATCH, FOLDS = 224, 32, 5
C, TOLERANCE = 0.1, 0.01  # of the regression, on standardised features; a tighter one takes minutes and gains nothing
LAYERS = {"ResNet50": ["conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=training.REAL, help="a folder of four classes")
    parser.add_argument("--weights", type=Path, nargs="+", default=[training.WEIGHTS], help="bases without top")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="ResNet50", help="of the bases")
    parser.add_argument("--layer", nargs="+", help="each by its name in Keras; else the last of ResNet-50's stages")
    parser.add_argument("--size", type=int, default=SIZE, help="pixels a side of an image")
    parser.add_argument("--work", type=Path, help="keep the prepared images here")
    options = parser.parse_args()
    if absent := [str(path) for path in (options.folder, *options.weights) if not path.exists()]:
        raise Problem(f"{' and '.join(absent)}: absent, so nothing is probed; give --folder and --weights")
    weights = [path.resolve() for path in options.weights]
    with tempfile.TemporaryDirectory() as made:
        work = (options.work or Path(made)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        written = training.a_recipe(options.folder.resolve(), weights[0], work, options.size)
        written["model"]["backbone"] = options.backbone
        training.write(written, work)
        if not (work / "data/prepared").is_dir():
            for name in ("fetch", "validate", "prepare"):
                training.run_stage(name, work)
        os.chdir(work)
        pixels, rows = prepared.read("train")
        recipe = params.load()
        found = {
            path.name: probes(recipe, features(path, options.backbone, options.layer, pixels[rows.index]), rows)
            for path in weights
        }
    print(table(found))
    about = {"size": options.size, "backbone": options.backbone, "images": len(rows)}
    stage.write_json(training.RESULTS / "probe.json", about | {"groups": rows["group"].nunique(), "bases": found})


def features(weights: Path, backbone: str, layers: Sequence[str] | None, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Each layer's features, pooled: [N, D], of uint8 [N, S, S, 3]. Raises Problem if the base has no such layer."""
    whole = classifier.build(pixels.shape[1], 2, backbone)
    classifier.load_base_weights(whole, str(weights), backbone)
    names = classifier.base_layers(whole)
    asked = layers or LAYERS.get(backbone) or [names[-1]]
    if unknown := [layer for layer in asked if layer not in names]:
        raise Problem(f"--layer: {backbone} has no {unknown[0]}; its last are {', '.join(names[-5:])}")
    pooled = {name: keras.layers.GlobalAveragePooling2D()(whole.get_layer(name).output) for name in asked}
    forward = views.session(frozen.graph(whole, pooled), cpus())
    starts = range(0, len(pixels), BATCH)
    parts = [forward(pixels[start : start + BATCH]) for start in stage.progress(starts, weights.name, unit="batch")]
    return {name: np.concatenate([part[name] for part in parts]) for name in asked}


def probes(recipe: Params, found: dict[str, np.ndarray], rows: pd.DataFrame) -> dict[str, Any]:
    """Balanced accuracy and recalls of each layer's probe; the features' rows are those of `rows`."""
    rows = rows.reset_index(drop=True)
    labels = rows["label"].to_numpy()
    weights = metrics.group_weights(labels, rows["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
    result: dict[str, Any] = {}
    for name, values in found.items():
        predicted = np.full(len(rows), -1)
        for side in folds.held_out(rows, recipe.prepare, FOLDS, recipe.seed).to_numpy().T:
            train, test = side == "train", side == "test"
            regression = LogisticRegression(C=C, class_weight="balanced", max_iter=1000, tol=TOLERANCE)
            probe = make_pipeline(StandardScaler(), regression).fit(values[train], labels[train])
            predicted[test] = probe.predict(values[test])
        value = metrics.estimate(metrics.balanced_accuracy(labels, predicted, weights))
        recalls = {c.key: float((predicted == i)[labels == i].mean()) for i, c in enumerate(recipe.classes)}
        result[name] = {"balanced_accuracy": value.__dict__, "recall": recalls}
        print(f"{name}: {value}", flush=True)
    return result


def table(found: dict[str, dict[str, Any]]) -> str:
    """Balanced accuracy by base and layer, with the interval over groups, and the recalls."""
    lines = ["| base | layer | balanced accuracy | recalls |", "|---" * 4 + "|"]
    for base, layers in found.items():
        for layer, each in layers.items():
            value = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**each["balanced_accuracy"])
            recalls = ", ".join(f"{key} {recall:.2f}" for key, recall in each["recall"].items())
            lines.append(f"| {base} | {layer} | {value} | {recalls} |")
    return "\n".join(lines)


if __name__ == "__main__":
    stage.guard(main)
