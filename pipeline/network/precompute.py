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
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import cluster, params, stage
from pipeline.ahead import ahead
from pipeline.data import prepared
from pipeline.network import stored, views
from pipeline.network.views import Batch, Stored, Work
from pipeline.params import Params

BATCH = 32
AHEAD = 4  # batches
STATE = stage.STATE / "features"
CODE = [
    Path(__file__).with_name(f"{name}.py")
    for name in ("augment", "backbones", "classifier", "frozen", "pooling", "views")
]


def ensure(recipe: Params) -> None:
    """Fills `data/features` unless it holds what this recipe, these images and this code give."""
    made = stored.FEATURES / stored.RECORD.name
    if not made.is_file() or stage.read_json(made, "features")["key"] != _key(recipe):
        print(f"{stored.FEATURES} is not here, or of another recipe: it is made first")
        fill(recipe)


@stage.alone(STATE)
def fill(recipe: Params) -> None:
    """Fills `data/features`, going on where an interruption left off."""
    pixels, train = prepared.read("train")
    _, val = prepared.read("val")
    wanted = recipe.features.views

    state = _state(recipe)
    done = len(list((state / "inputs").glob("view-*.npy")))
    if done:
        print(f"going on after view {done} of {wanted}")
    with _computing(recipe) as compute:
        for number in stage.progress(range(done, wanted), "views", unit="view"):
            stored.write(state, f"view-{number:02}.npy", len(train), compute(_batches(pixels, train, number)))
        stored.write(state, "val.npy", len(val), compute(_batches(pixels, val, None)))
    if val.empty:  # every image is trained on; `val.npy` is there all the same, since it says that the views are whole
        for view in sorted(state.glob("*/view-00.npy")):
            with stage.writing(view.with_name("val.npy")) as path:
                np.save(path, np.load(view, mmap_mode="r")[:0])
    stage.write_json(state / stored.RECORD.name, {"key": state.name, "views": wanted})
    with stage.writing(stored.FEATURES) as folder:
        state.rename(folder)

    _, inputs = stored.read("inputs")
    what = "images" if inputs.dtype == np.uint8 else f"activations {inputs.shape[1:]} in float16"
    size = sum(file.stat().st_size for file in stored.FEATURES.rglob("*.npy")) / 2**20
    print(f"{wanted} views of {len(train)} images, and {len(val)} as they are: {what}, {size:.0f} MiB")


def _batches(pixels: np.ndarray, rows: pd.DataFrame, view: int | None) -> Iterator[Batch]:
    for start in range(0, len(rows), BATCH):
        some = rows.iloc[start : start + BATCH]
        yield Batch(view, pixels[some.index], some["sha256"].tolist())


@contextmanager
def _computing(recipe: Params) -> Iterator[Callable[[Iterable[Batch]], Iterator[Stored]]]:
    """Yields a function from batches to the arrays to store of each, which runs here or on a Ray cluster."""
    address = os.environ.get(cluster.ADDRESS)
    work, forward = Work(recipe.augment, recipe.seed), None
    if recipe.features.weights != "none" or recipe.fine_tune.trainable_from != "all":
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
        with ThreadPoolExecutor() as pool:  # a few batches are augmented ahead, on the same cores as the network

            def augmented(batch: Batch) -> Future[np.ndarray]:
                return pool.submit(views.augmented, work, batch)

            store = partial(views.stored, forward)
            yield lambda batches: map(store, ahead(batches, augmented, Future.result, lambda: AHEAD))


def _key(recipe: Params) -> str:
    weights = recipe.features.weights
    file = stage.sha256(Path(weights)) if Path(weights).is_file() else weights
    code = (stage.sha256(path) for path in CODE)
    return stage.state_key(
        params.until(recipe, "features"),
        recipe.fine_tune.trainable_from,
        str(recipe.fine_tune.epochs > 0),
        file,
        prepared.digest(),
        *code,
    )


def _state(recipe: Params) -> Path:
    """The folder of finished views, which outlives an interruption; those of other recipes or data are removed."""
    state = STATE / _key(recipe)
    stage.drop_others(state)
    state.mkdir(parents=True, exist_ok=True)
    for half in state.glob("*/.*"):  # left by a process killed in the middle of a view
        shutil.rmtree(half)
    return state
