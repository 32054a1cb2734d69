"""`data/features`: stored activations that both phases of training read in every epoch (`precompute` makes them)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from pipeline import stage

FEATURES = Path("data/features")
RECORD = Path("data/features.json")  # of what they are; a copy lies with them


def read(what: Literal["inputs", "pooled", "maps"]) -> tuple[list[np.ndarray], np.ndarray]:
    """The stored views, each [n, …], and the validation split's [m, …]; memory-mapped."""
    val = stage.require(FEATURES / what / "val.npy", "features")  # written last
    views = sorted(val.parent.glob("view-*.npy"))
    return [np.load(file, mmap_mode="r") for file in views], np.load(val, mmap_mode="r")


def write(folder: Path, name: str, rows: int, batches: Iterator[dict[str, np.ndarray]]) -> None:
    """Appends batches to `<what>/<name>` for each of their arrays, with one batch in memory at a time.

    Either all files are there in the end, or none.
    """
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for batch in batches:
            for what, array in batch.items():
                if what not in files:
                    # `inputs` comes first and so is renamed last: a view is complete once that is there.
                    path = stack.enter_context(stage.writing(folder / what / name))
                    files[what] = stack.enter_context(path.open("wb"))
                    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
                    np.lib.format.write_array_header_1_0(files[what], header)
                files[what].write(np.ascontiguousarray(array).data)  # `tofile` hides why a disk took less
