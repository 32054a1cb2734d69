"""Computes, once, what every epoch of both phases reads: augmented views of the training images, as far as
the frozen part of the network takes them.

Reads:  data/prepared/, params (features.weights, fine_tune.trainable_from, augment)
Writes: data/features/train.npy [V, n, …], data/features/val.npy [m, …] (not augmented)
        float16 activations where the frozen part ends; uint8 images where nothing is frozen
Run:    python -m pipeline.features
"""

import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline import augment, model, params, prepare, stage, tracking
from pipeline.params import Params
from pipeline.stage import Problem

FEATURES = Path("data/features")
BATCH = 32
AHEAD = 4  # batches


def main() -> None:
    recipe = params.load()
    tracking.check()  # an unreachable server is found now, not after an hour of training
    keras.utils.set_random_seed(recipe.seed)
    pixels, train = prepare.read("train")
    _, val = prepare.read("val")
    frozen = frozen_part(recipe)

    state = _state(recipe)
    with ThreadPoolExecutor() as pool:
        shape = pixels.shape[1:] if frozen is None else frozen.output_shape[1:]
        dtype = np.uint8 if frozen is None else np.float16
        views = _open(state / "train.npy", (recipe.features.views, len(train), *shape), dtype)
        plain = _open(state / "val.npy", (len(val), *shape), dtype)
        forward = _forward(frozen)

        def augmented(number: int, start: int) -> np.ndarray:
            rows = train.iloc[start : start + BATCH]
            return np.stack(
                [
                    augment.view(pixels[row], recipe.augment, recipe.seed, number, sha256)
                    for row, sha256 in zip(rows.index, rows["sha256"], strict=True)
                ]
            )

        done = _views_done(state)
        if done:
            print(f"going on after view {done} of {recipe.features.views}")
        for number in stage.progress(range(done, recipe.features.views), "views", unit="view"):
            starts = range(0, len(train), BATCH)
            # Augmentation runs ahead of the network by a few batches, on the same cores.
            ahead = deque(pool.submit(augmented, number, start) for start in starts[:AHEAD])
            for i, start in enumerate(starts):
                ahead.extend(
                    pool.submit(augmented, number, following) for following in starts[i + AHEAD : i + AHEAD + 1]
                )
                batch = ahead.popleft().result()
                views[number, start : start + len(batch)] = forward(batch)
            views.flush()
            (state / "views_done").write_text(str(number + 1))
        for start in range(0, len(val), BATCH):
            batch = pixels[val.index[start : start + BATCH]]
            plain[start : start + len(batch)] = forward(batch)
        plain.flush()
    (state / "views_done").unlink()
    with stage.writing(FEATURES) as folder:
        state.rename(folder)

    what = "images" if frozen is None else f"activations {shape} in float16"
    size = sum(file.stat().st_size for file in FEATURES.iterdir()) / 2**20
    print(f"{recipe.features.views} views of {len(train)} images, and {len(val)} as they are: {what}, {size:.0f} MiB")


def base_model(recipe: Params) -> keras.Model:
    """The whole float32 model with `features.weights` under a random head. Raises Problem for wrong weights."""
    whole = model.build(recipe.prepare.image_size, len(recipe.classes), recipe.model.backbone)
    if recipe.features.weights != "none":
        model.load_base_weights(whole, recipe.features.weights, recipe.model.backbone)
    return whole


def frozen_part(recipe: Params) -> keras.Model | None:
    """What the views go through before they are stored; None where every layer is to train."""
    whole = base_model(recipe)
    cut = model.boundary(whole, recipe.fine_tune.trainable_from)
    return None if cut is None else model.frozen_part(whole, cut)


def read() -> tuple[np.ndarray, np.ndarray]:
    """The stored views [V, n, …] and validation inputs [m, …], memory-mapped."""
    if not (FEATURES / "train.npy").is_file():
        raise Problem(f"{FEATURES}/ is missing; `dvc repro features` makes it")
    return np.load(FEATURES / "train.npy", mmap_mode="r"), np.load(FEATURES / "val.npy", mmap_mode="r")


def _state(recipe: Params) -> Path:
    """A folder for what an interruption must not lose; what another recipe or other data left is dropped."""
    weights = recipe.features.weights
    key = stage.state_key(
        recipe.model_dump_json(by_alias=True, include={"seed", "classes", "prepare", "model", "augment", "features"}),
        recipe.fine_tune.trainable_from,
        stage.sha256(Path(weights)) if Path(weights).is_file() else weights,
        prepare.digest(),
    )
    state = stage.STATE / "features" / key
    for other in state.parent.glob("*"):
        if other != state:
            shutil.rmtree(other)
    state.mkdir(parents=True, exist_ok=True)
    return state


def _views_done(state: Path) -> int:
    file = state / "views_done"
    return int(file.read_text()) if file.is_file() else 0


def _open(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A new file, or the one that was begun."""
    if path.is_file():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)


def _forward(frozen: keras.Model | None) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a batch of images into what is stored."""
    if frozen is None:
        return lambda batch: batch
    graph = tf.function(frozen, reduce_retracing=True)  # as a graph, convolution, normalisation and ReLU are one step

    def forward(batch: np.ndarray) -> np.ndarray:
        activations = graph(batch, training=False).numpy()
        if activations.max() > np.finfo(np.float16).max:
            raise Problem("activations exceed float16's range: these weights do not fit this network's normalisation")
        return activations.astype(np.float16)

    return forward


if __name__ == "__main__":
    stage.run(main)
