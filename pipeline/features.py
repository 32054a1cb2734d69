"""Computes, once, what every epoch of both phases reads: augmented views of the training images, as far as
the frozen part of the network takes them.

Reads:  data/prepared/, params (features.weights, fine_tune.trainable_from, augment)
Writes: data/features/inputs/view-00.npy … [n, …] and val.npy [m, …] (not augmented): float16 activations where the
        frozen part ends; uint8 images where nothing is frozen
        data/features/pooled/view-00.npy … float32 [n, 2048] and val.npy [m, 2048], of a pretrained base
Run:    python -m pipeline.features
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from pipeline import augment, params, prepare, stage, tracking
from pipeline.params import Params
from pipeline.stage import Problem

FEATURES = Path("data/features")
BATCH = 32
AHEAD = 4  # batches


def main() -> None:
    recipe = params.load()
    tracking.check()  # an unreachable server is found now, not after an hour of training
    pixels, train = prepare.read("train")
    _, val = prepare.read("val")
    views = recipe.features.views

    state = _state(recipe)
    done = len(list((state / "inputs").glob("view-*.npy")))
    if done:
        print(f"going on after view {done} of {views}")
    forward = _forward(recipe)
    with ThreadPoolExecutor() as pool:
        for number in stage.progress(range(done, views), "views", unit="view"):

            def augmented(start: int, number: int = number) -> np.ndarray:
                rows = train.iloc[start : start + BATCH]
                return np.stack(
                    [
                        augment.view(pixels[row], recipe.augment, recipe.seed, number, sha256)
                        for row, sha256 in zip(rows.index, rows["sha256"], strict=True)
                    ]
                )

            ahead = _ahead(pool, augmented, range(0, len(train), BATCH))
            _write(state, f"view-{number:02}.npy", len(train), map(forward, ahead))
        plain = (pixels[val.index[start : start + BATCH]] for start in range(0, len(val), BATCH))
        _write(state, "val.npy", len(val), map(forward, plain))
    with stage.writing(FEATURES) as folder:
        state.rename(folder)

    stored = read("inputs")[1]
    what = "images" if stored.dtype == np.uint8 else f"activations {stored.shape[1:]} in float16"
    size = sum(file.stat().st_size for file in FEATURES.rglob("*.npy")) / 2**20
    print(f"{views} views of {len(train)} images, and {len(val)} as they are: {what}, {size:.0f} MiB")


def read(what: Literal["inputs", "pooled"]) -> tuple[list[np.ndarray], np.ndarray]:
    """The stored views, each [n, …], and the validation split's [m, …]; memory-mapped."""
    files = sorted((FEATURES / what).glob("view-*.npy"))
    if not files:
        raise Problem(f"{FEATURES}/{what}/ is missing; `dvc repro features` makes it")
    return [np.load(file, mmap_mode="r") for file in files], np.load(FEATURES / what / "val.npy", mmap_mode="r")


def _forward(recipe: Params) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What turns a batch of images into what is stored."""
    if recipe.features.weights == "none" and recipe.fine_tune.trainable_from == "all":
        return lambda images: {"inputs": images}
    from pipeline import forward  # here: TensorFlow takes longer to import than a view of images to make

    return forward.frozen(recipe)


def _ahead(pool: ThreadPoolExecutor, make: Callable[[int], np.ndarray], starts: range) -> Iterator[np.ndarray]:
    """Batches in order; a few are made ahead, on the same cores as the network."""
    waiting = deque(pool.submit(make, start) for start in starts[:AHEAD])
    for i in range(len(starts)):
        waiting.extend(pool.submit(make, start) for start in starts[i + AHEAD : i + AHEAD + 1])
        yield waiting.popleft().result()


def _write(folder: Path, name: str, rows: int, batches: Iterator[dict[str, np.ndarray]]) -> None:
    """Appends batches to `<what>/<name>` for each of their arrays: no more than a batch is ever in memory.

    Both files are there in the end, or neither.
    """
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for batch in batches:
            for what, array in batch.items():
                if what not in files:
                    # Entered first, `inputs` is renamed last: a view counts once that is there.
                    path = stack.enter_context(stage.writing(folder / what / name))
                    files[what] = stack.enter_context(path.open("wb"))
                    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
                    np.lib.format.write_array_header_1_0(files[what], header)
                array.tofile(files[what])


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


if __name__ == "__main__":
    stage.run(main)
