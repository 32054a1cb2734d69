"""Fills `data/features`: what every epoch of both phases reads, after the frozen part of the network.

DVC keeps a record of it alone, `data/features.json`, since it is gigabytes that any machine can make again. Where a
phase is to be trained and they are not here, as in a fresh clone, they are made first; else nobody misses them.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from leukdetect.runtime import cpus
from pipeline import cluster, params, stage
from pipeline.ahead import ahead
from pipeline.data import prepared
from pipeline.network import stored, views
from pipeline.network.views import Batch, Stored, Work
from pipeline.params import Params

BATCH = 4  # images: the maps of more do not fit in the processor's cache
AHEAD = 4  # batches, beside one for each processor
STATE = stage.STATE / "features"
CODE = [
    Path(__file__).with_name(f"{name}.py")
    for name in ("augment", "backbones", "classifier", "frozen", "pooling", "scale_bar", "stain", "to_onnx", "views")
]


def ensure(recipe: Params) -> None:
    """Fills `data/features` unless it holds what this recipe, these images and this code give."""
    made = stored.FEATURES / stored.RECORD.name
    if not made.is_file() or stage.read_json(made, "features")["key"] != _key(recipe, prepared.digest()):
        print(f"{stored.FEATURES} is not here, or of another recipe: it is made first")
        fill(recipe)


@stage.alone(STATE)
def fill(recipe: Params) -> None:
    """Fills `data/features`, going on where an interruption left off."""
    pixels, train = prepared.read("train")
    _, val = prepared.read("val")
    wanted = recipe.features.views

    state = _state(recipe)
    done = min((len(list(folder.glob("view-*.npy"))) for folder in state.glob("*/")), default=0)
    if done:
        print(f"going on after view {done} of {wanted}")
    with _computing(recipe) as compute:
        for number in stage.progress(range(done, wanted), "views", unit="view"):
            stored.write(state, f"view-{number:02}.npy", len(train), compute(_batches(pixels, train, number)))
        stored.write(state, "val.npy", len(val), compute(_batches(pixels, val, None)))
    if val.empty:  # every image is trained on; `val.npy` is there all the same, since it says that the views are whole
        for view in _first(state):
            with stage.writing(view.with_name("val.npy")) as path:
                np.save(path, np.load(view, mmap_mode="r")[:0])
    stage.write_json(state / stored.RECORD.name, {"key": state.name, "views": wanted})
    with stage.writing(stored.FEATURES) as folder:
        state.rename(folder)

    what = ", ".join(f"{view.parent.name} {np.load(view, mmap_mode='r').shape[1:]}" for view in _first(stored.FEATURES))
    size = sum(file.stat().st_size for file in stored.FEATURES.rglob("*.npy")) / 2**20
    print(f"{wanted} views of {len(train)} images, and {len(val)} as they are: {what}, {size:.0f} MiB")


def take(recipe: Params, folder: Path) -> None:
    """Fills the `data/features` of another folder with views from here, which is filled first if need be: those of an
    image do not depend on which others there are.

    Args:
        recipe: of this folder.
        folder: the other one, of the same recipe; its split.csv has a row for each of this one's, trains on some of the
            images that this one trains on, and has no validation split.
    """
    ensure(recipe)
    split = folder / prepared.PREPARED / "split.csv"
    mine, theirs = prepared.read()[1]["split"], pd.read_csv(split)["split"]
    rows = np.flatnonzero(theirs[mine == "train"] == "train")
    with stage.writing(folder / stored.FEATURES) as made:
        for file in sorted(stored.FEATURES.glob("*/*.npy")):
            copy = made / file.relative_to(stored.FEATURES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            views = np.load(file, mmap_mode="r")
            np.save(copy, views[:0] if file.name == "val.npy" else views[rows])
        key = _key(params.load(folder / params.PARAMS_FILE), stage.sha256(split))
        record = {"key": key, "views": recipe.features.views}
        stage.write_json(made / stored.RECORD.name, record)
    stage.write_json(folder / stored.RECORD, record)


def _first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/view-00.npy"))


def _batches(pixels: np.ndarray, rows: pd.DataFrame, view: int | None) -> Iterator[Batch]:
    count = -(-len(rows) // BATCH)
    ends = np.arange(count + 1) * len(rows) // max(1, count)  # about equal: one image alone is rounded otherwise
    for start, end in pairwise(ends):
        some = rows.iloc[start:end]
        yield Batch(view, pixels[some.index], some["sha256"].tolist())


@contextmanager
def _computing(recipe: Params) -> Iterator[Callable[[Iterable[Batch]], Iterator[Stored]]]:
    """Yields a function from batches to the arrays to store of each, which runs here or on a Ray cluster."""
    address = os.environ.get(cluster.ADDRESS)
    scratch = recipe.features.weights == "none"
    work = Work(recipe.augment, recipe.seed, images=scratch or recipe.fine_tune.epochs > 0)
    forward = None
    if not scratch or recipe.fine_tune.trainable_from != "all":
        from pipeline.network import frozen  # here: importing TensorFlow takes longer than making a view

        if address:
            graph = frozen.graph(*frozen.stored_tensors(recipe))
            work = replace(work, graph=np.frombuffer(graph, np.uint8), sha256=hashlib.sha256(graph).hexdigest())
        else:
            forward = frozen.forward(recipe)
    if address:
        with cluster.connected(address, views.on_a_worker, work) as over:
            yield over
    else:
        with ThreadPoolExecutor(cpus()) as pool:

            def begin(batch: Batch) -> Future[Stored]:
                return pool.submit(views.stored, forward, work, batch)

            yield lambda batches: ahead(batches, begin, Future.result, lambda: cpus() + AHEAD)


def _key(recipe: Params, data: str) -> str:
    weights = recipe.features.weights
    file = stage.sha256(Path(weights)) if Path(weights).is_file() else weights
    code = (stage.sha256(path) for path in CODE)
    return stage.state_key(
        params.until(recipe, "features"),
        recipe.fine_tune.trainable_from,
        str(recipe.fine_tune.epochs > 0),
        file,
        data,
        *code,
    )


def _state(recipe: Params) -> Path:
    """The folder of finished views, which outlives an interruption; those of other recipes or data are removed."""
    state = STATE / _key(recipe, prepared.digest())
    stage.drop_others(state)
    state.mkdir(parents=True, exist_ok=True)
    for half in state.glob("*/.*"):  # left by a process killed in the middle of a view
        shutil.rmtree(half)
    return state
