"""Training beside plain Keras: the same images, split, seed, head and rates; images/s, time, memory, disk, accuracy.

Plain is `benchmarks/plain.py`: `fit` from JPEG files, twice 15 epochs. It is timed on a few steps of each phase,
before, between and after our stages, and extrapolated to its 30 epochs. Ours is the stages, each a process, with
imports, without early stopping; the time of `features` with 15 views is extrapolated from 5. A user gets oneDNN by
default on processors with AVX-512 VNNI and not on others, so plain is timed with it on and off.

Run:    python -m benchmarks.training              # times (about 25 minutes)
        python -m benchmarks.training --accuracy   # trains both to the end, --seeds times each: hours
        python -m benchmarks.training --growth     # time and memory at 1, 4 and 16 times the images
        --folder F: four class folders; else ../shared/data/all4, else the demo rendered at --size
Writes: benchmarks/results/training.json, or …-accuracy.json, or …-growth.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml

from pipeline import stage
from pipeline.evaluation import metrics
from pipeline.stage import Problem

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
REAL = ROOT.parent / "shared/data/all4"
WEIGHTS = ROOT.parent / "shared/weights/resnet50_notop_pbc.weights.h5"
EPOCHS = 15
BARS = {5: {"0": 4.0, "1": 3.0}, 15: {"0": 2.5, "1": 1.8}}  # views: oneDNN off and on: plain's time ÷ ours
ONEDNN = {"0": "off", "1": "on"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a folder of four classes")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a ResNet-50 without top; absent: random")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=8, help="of plain Keras, each time it is timed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep what was made here, and go on from it (--accuracy)")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16], help="the images, for --growth")
    options = parser.parse_args()
    folder = (options.folder or REAL).resolve()
    if not folder.is_dir():
        print(f"{folder} is absent: the demo's rendered smears at {options.size} px stand in; its figures mean less")
    with tempfile.TemporaryDirectory() as made:
        work = (options.work or Path(made)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        recipe = a_recipe(folder, options.weights.resolve(), work, options.size)
        if not (work / "data/prepared").is_dir():
            write(recipe, work)
            for name in ("fetch", "validate", "prepare"):
                run_stage(name, work)
        if options.accuracy:
            result, name = accuracy(work, recipe, options.seeds), "training-accuracy"
        elif options.growth:
            result, name = growth(work, recipe, options.times), "training-growth"
        else:
            result, name = times(work, recipe, options.steps), "training"
    stage.write_json(RESULTS / f"{name}.json", result)


def times(work: Path, recipe: dict[str, Any], steps: int) -> dict[str, Any]:
    """Interleaves slices of plain Keras with our stages, and prints the tables and whether the bars are met."""
    split = pd.read_csv(work / "data/prepared/split.csv")["split"].value_counts()
    lay_out_for_keras(work)
    plain: dict[str, list[dict[str, Any]]] = {key: [] for key in ONEDNN}

    def slices() -> None:
        for key in ONEDNN:
            plain[key].append(run_plain(work, recipe, key, "--steps", str(steps)))

    ours = {}
    write(recipe, work)
    for name in ("features", "train_head", "fine_tune"):
        slices()
        ours[name] = run_stage(name, work)
    slices()
    disk = sum(f.stat().st_size for f in (work / "data/features").rglob("*.npy")) / 2**30
    # A second experiment: other rates. The views stay, so only what trains runs again.
    recipe["train_head"]["learning_rate"] = recipe["train_head"]["learning_rate"] / 2
    write(recipe, work)
    again = [run_stage(name, work)["seconds"] for name in ("train_head", "fine_tune")]

    n, m = int(split["train"]), int(split["val"])
    totals = {key: statistics.median(whole_plain(cell, n, m) for cell in cells) for key, cells in plain.items()}
    views = recipe["features"]["views"]
    lines = ["| plain Keras | seconds a step, phase 1 | phase 2 | 30 epochs, s | peak GiB |", "|---" * 5 + "|"]
    for key, cells in plain.items():
        one, two = (statistics.median(c[f"phase {p}"]["step"] for c in cells) for p in (1, 2))
        peak = max(c["peak_gib"] for c in cells)
        lines += [f"| oneDNN {ONEDNN[key]} | {one:.2f} | {two:.2f} | {totals[key]:.0f} | {peak:.1f} |"]
    lines += ["", f"| ours, views: {views} | s | images/s | peak GiB |", "|---" * 4 + "|"]
    read = {"features": n * views + m, "train_head": (n + m) * EPOCHS, "fine_tune": (n + m) * EPOCHS}
    for name, cell in ours.items():
        lines += [f"| {name} | {cell['seconds']:.0f} | {read[name] / cell['seconds']:.0f} | {cell['peak_gib']:.1f} |"]
    lines += ["", f"Disk for views: {disk:.1f} GiB. A second experiment with other rates: {sum(again):.0f} s."]
    print("\n".join(lines), end="\n\n")

    after = ours["train_head"]["seconds"] + ours["fine_tune"]["seconds"]
    total = {v: ours["features"]["seconds"] * v / views + after for v in BARS}
    print("| views | ours, s | plain ÷ ours, oneDNN off | bar | on | bar |", "|---" * 6 + "|", sep="\n")
    for v, bars in BARS.items():
        ratios = {key: totals[key] / total[v] for key in bars}
        verdict = " | ".join(
            f"{ratios[k]:.2f} | ≥ {b:g} {'met' if ratios[k] >= b else 'MISSED'}" for k, b in bars.items()
        )
        print(f"| {v} | {total[v]:.0f} | {verdict} |")
    return {"plain": plain, "ours": ours, "totals": {"plain": totals, "ours": total}, "again": again, "disk_gib": disk}


def whole_plain(cell: dict[str, Any], n: int, m: int) -> float:
    """Seconds of 15 epochs of both phases, from a step's time; the first two steps and their tracing count once."""
    steps, val_steps = -(-n // 32), -(-m // 32)
    phases = (cell["phase 1"], cell["phase 2"])
    return sum(p["start"] + EPOCHS * (steps * p["step"] + val_steps * p["val_step"]) for p in phases)


def accuracy(work: Path, recipe: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Trains both to the end with a recipe that learns: every layer, AdamW, a cosine schedule to zero.

    One seed's interval covers the choice of test images for two given networks. The interval over seeds covers images
    and trainings: both groups and seeds are resampled.
    """
    rates, decay, epochs = (recipe["train_head"]["learning_rate"], 6e-4), 0.01, (2, 12)
    recipe["features"]["views"] = max(epochs)
    for phase, rate, count in zip(("train_head", "fine_tune"), rates, epochs, strict=True):
        recipe[phase] |= {"epochs": count, "patience": count, "learning_rate": rate}
    recipe["fine_tune"] |= {"trainable_from": "all", "batch_norm": "trained", "weight_decay": decay}
    recipe["fine_tune"] |= {"optimizer": "adamw", "schedule": "cosine"}
    lay_out_for_keras(work)
    pixels, split = np.load(work / "data/prepared/images.npy", mmap_mode="r"), read_split(work)
    test = split[split["split"] == "test"]
    np.save(work / "test.npy", pixels[test.index])
    labels, groups = test["label"].to_numpy(), test["group"].to_numpy()
    weights = metrics.group_weights(labels, groups, 1000, 0)
    found: list[dict[str, Any]] = []
    differences = []
    for seed in range(seeds):
        answers = {}
        for who in ("ours", "plain"):
            out = work / f"{who}-{seed}.npy"
            if not out.is_file() and who == "ours":
                write(recipe | {"seed": recipe["seed"] + seed}, work)
                for name in ("features", "train_head", "fine_tune"):
                    run_stage(name, work)
                run_python(work, "-c", PREDICT, str(out))
            elif not out.is_file():
                arguments = ["--trainable-from", "all", "--weight-decay", str(decay), "--epochs", *map(str, epochs)]
                arguments += ["--rates", *map(str, rates), "--seed", str(recipe["seed"] + seed)]
                run_plain(work, recipe, "1", *arguments, "--predict", str(work / "test.npy"), str(out))
            answers[who] = np.load(out)
        values = {who: metrics.balanced_accuracy(labels, predicted, weights) for who, predicted in answers.items()}
        differences.append(values["ours"] - values["plain"])
        cell = {who: metrics.estimate(value).__dict__ for who, value in values.items()}
        cell |= {"seed": recipe["seed"] + seed, "ours_minus_plain": metrics.estimate(differences[-1]).__dict__}
        found.append(cell)
        print(json.dumps(cell), flush=True)
    return {"seeds": found, "over_seeds": over_seeds(np.array(differences)).__dict__}


def over_seeds(differences: np.ndarray) -> metrics.Estimate:
    """The mean over seeds of [S, 1 + R] differences, seeds being drawn with replacement in each resample."""
    drawn = np.random.default_rng(0).integers(0, len(differences), differences.shape)
    drawn[:, 0] = np.arange(len(differences))  # the sample as it is
    return metrics.estimate(np.take_along_axis(differences, drawn, axis=0).mean(axis=0))


PREDICT = """
import sys, numpy as np
from pipeline.data import prepared
from pipeline.network import inference, trained
pixels, test = prepared.read("test")
np.save(sys.argv[1], inference.forward(trained.load_model(), pixels, test.index.to_numpy())[0].argmax(axis=1))
"""


def growth(work: Path, recipe: dict[str, Any], factors: list[int]) -> dict[str, Any]:
    """One view and one epoch of each phase over 1, 4, 16 times the images: copies, each augmented anew."""
    pixels, split = np.load(work / "data/prepared/images.npy"), read_split(work)
    recipe["features"]["views"] = recipe["train_head"]["epochs"] = recipe["fine_tune"]["epochs"] = 1
    write(recipe, work)
    cells = []
    print("| images | " + " | ".join(f"{n} s | GiB" for n in ("features", "train_head", "fine_tune")) + " |")
    print("|---" * 7 + "|")
    for factor in factors:
        repeated = pd.concat([split] * factor, ignore_index=True)
        copies = np.repeat(np.arange(factor), len(split))
        # The augmentation's random numbers follow from the hash, so another hash is another image.
        repeated["sha256"] = [f"{c:04x}{h[4:]}" for c, h in zip(copies, repeated["sha256"], strict=True)]
        file = np.lib.format.open_memmap(
            work / "data/prepared/images.npy", "w+", np.uint8, (len(repeated), *pixels.shape[1:])
        )
        for copy in range(factor):
            file[copy * len(split) : (copy + 1) * len(split)] = pixels
        file.flush()
        repeated.to_csv(work / "data/prepared/split.csv", index=False)
        cell = {name: run_stage(name, work) for name in ("features", "train_head", "fine_tune")}
        cells.append(cell | {"images": len(repeated)})
        print(
            f"| {len(repeated)} | "
            + " | ".join(f"{c['seconds']:.0f} | {c['peak_gib']:.2f}" for c in cell.values())
            + " |"
        )
    return {"cells": cells}


def a_recipe(folder: Path, weights: Path, work: Path, size: int) -> dict[str, Any]:
    """The paper's recipe on a folder of images; without early stopping, since plain Keras is timed without.

    The corner is not painted over: no Keras layer does that, and both must see the same.
    """
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "presets/all4.yaml").read_text())
    if folder.is_dir():
        recipe["fetch"] |= {"source": "folder", "folder": str(folder)}
    else:
        demo = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
        recipe |= {key: demo[key] for key in ("seed", "classes", "fetch", "demo", "validate", "prepare")}
        recipe["demo"]["size"] = size
    if not weights.is_file():
        weights = work / "random.weights.h5"
        run_python(work, "-c", RANDOM, str(weights))
    recipe["prepare"]["image_size"], recipe["estimate"]["folds"] = size, []  # one split: both are timed on the same
    recipe["augment"]["erase_corner"] = 0.0
    recipe["features"] |= {"weights": str(weights), "views": 5}
    for phase in ("train_head", "fine_tune"):
        recipe[phase] |= {"epochs": EPOCHS, "patience": EPOCHS}
    return recipe


RANDOM = "import sys, keras; keras.applications.ResNet50(include_top=False, weights=None).save_weights(sys.argv[1])"


def write(recipe: dict[str, Any], work: Path) -> None:
    (work / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def read_split(work: Path) -> pd.DataFrame:
    return pd.read_csv(work / "data/prepared/split.csv", dtype={"patient": str, "group": str}, keep_default_na=False)


def lay_out_for_keras(work: Path) -> None:
    """Links the images into <split>/<class>/, as `image_dataset_from_directory` wants them."""
    for row in read_split(work).itertuples():
        link = work / "files" / str(row.split) / str(row.path)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(work / "data/raw" / str(row.path))


def run_plain(work: Path, recipe: dict[str, Any], onednn: str, *arguments: str) -> dict[str, Any]:
    files = [str(ROOT / "benchmarks/plain.py"), str(work / "files"), "--weights", recipe["features"]["weights"]]
    files += ["--size", str(recipe["prepare"]["image_size"])]
    cell = run_python(work, *files, *arguments, TF_ENABLE_ONEDNN_OPTS=onednn)
    return {"peak_gib": cell["peak_gib"], **json.loads(cell["out"].splitlines()[-1])}


def run_stage(name: str, work: Path) -> dict[str, float]:
    """Seconds and peak memory of a stage, run as a process; memory-mapped files do not count."""
    cell = run_python(work, "-m", f"pipeline.{name}")
    print(f"{name}: {cell['seconds']:.0f} s, {cell['out'].strip().splitlines()[-1]}", file=sys.stderr, flush=True)
    return {"seconds": cell["seconds"], "peak_gib": cell["peak_gib"]}


def run_python(work: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """Runs Python in the work folder. Raises Problem with the end of its output if it fails."""
    own = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db", "TF_CPP_MIN_LOG_LEVEL": "3"}
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, cwd=work, env=os.environ | own | environment, stdout=out, stderr=out)
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.1):
                peak = max(peak, anonymous(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        done.set()
        watcher.join()
        seconds = time.monotonic() - start
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise Problem(f"{' '.join(arguments[:2])} failed:\n{text[-2000:]}")
    return {"out": text, "seconds": seconds, "peak_gib": peak / 2**30}


def anonymous(pid: int) -> int:
    """A process's anonymous memory in bytes (Linux); 0 once it has ended."""
    with suppress(psutil.NoSuchProcess):
        memory = psutil.Process(pid).memory_info()
        return memory.rss - memory.shared
    return 0


if __name__ == "__main__":
    stage.guard(main)
