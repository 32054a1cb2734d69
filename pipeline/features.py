"""Computes, once, what every epoch of both phases reads: augmented views of the training images, as far as
the frozen part of the network takes them.

Reads:  data/prepared/, params (features.weights, fine_tune.trainable_from, augment)
Writes: data/features/inputs/view-00.npy … [n, …] and val.npy [m, …] (not augmented): float16 activations where the
        frozen part ends; uint8 images where nothing is frozen
        data/features/pooled/view-00.npy … float32 [n, 2048] and val.npy [m, 2048], of a pretrained base
Run:    python -m pipeline.features     (with RAY_ADDRESS: on that Ray cluster, to the same bytes)
"""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import cluster, params, stage
from pipeline.data import prepared
from pipeline.network import stored, views
from pipeline.network.views import Batch, Forward, Stored, Work
from pipeline.params import Params
from pipeline.registry import tracking

BATCH = 32
AHEAD = 4  # batches


def main() -> None:
    recipe = params.load()
    tracking.check()  # an unreachable server is found now, not after an hour of training
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
    """Yields a `map` from batches to what is stored of each: on this machine, or on a Ray cluster."""
    work = Work(recipe.augment, recipe.seed)
    run: Forward = _images_alone
    nothing_frozen = recipe.features.weights == "none" and recipe.fine_tune.trainable_from == "all"
    address = os.environ.get(cluster.ADDRESS)
    if not nothing_frozen:
        from pipeline.network import frozen  # here: TensorFlow takes longer to import than a view of images to make

        if address:
            graph = frozen.graph(recipe)
            digest = hashlib.sha256(graph).hexdigest()
            work = Work(recipe.augment, recipe.seed, np.frombuffer(graph, np.uint8), digest)
        else:
            run = frozen.frozen(recipe)
    if address:
        with cluster.connected(address, views.on_a_worker, work) as over:
            yield over
    else:
        with ThreadPoolExecutor() as pool:
            yield lambda batches: map(run, _ahead(pool, partial(views.augmented, work), batches))


def _images_alone(images: np.ndarray) -> Stored:
    return {"inputs": images}


def _ahead(
    pool: ThreadPoolExecutor, make: Callable[[Batch], np.ndarray], batches: Iterable[Batch]
) -> Iterator[np.ndarray]:
    """Images in order; a few batches are made ahead, on the same cores as the network."""
    rest = iter(batches)
    waiting = deque(pool.submit(make, batch) for batch in islice(rest, AHEAD))
    while waiting:
        waiting.extend(pool.submit(make, batch) for batch in islice(rest, 1))
        yield waiting.popleft().result()


def _state(recipe: Params) -> Path:
    """A folder for what an interruption must not lose; what another recipe or other data left is dropped."""
    weights = recipe.features.weights
    key = stage.state_key(
        recipe.model_dump_json(by_alias=True, include={"seed", "classes", "prepare", "model", "augment", "features"}),
        recipe.fine_tune.trainable_from,
        stage.sha256(Path(weights)) if Path(weights).is_file() else weights,
        prepared.digest(),
    )
    state = stage.STATE / "features" / key
    for other in state.parent.glob("*"):
        if other != state:
            shutil.rmtree(other)
    state.mkdir(parents=True, exist_ok=True)
    for half in state.glob("*/.*"):  # of a view in whose middle the process was killed; else DVC would store it
        shutil.rmtree(half)
    return state


if __name__ == "__main__":
    stage.run(main)
