"""`data/prepared`: the decoded images and their splits, as `pipeline.prepare` writes them."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import stage

PREPARED = Path("data/prepared")
COLUMNS = ["path", "class", "label", "sha256", "patient", "group", "split"]  # of split.csv


def read(split: str | None = None) -> tuple[np.ndarray, pd.DataFrame]:
    """All prepared images [N, S, S, 3] (uint8, memory-mapped), and the rows of split.csv: all, or those of one split.

    A row's index is its image's place in the array: use `images[rows.index]`.
    """
    table = stage.require(PREPARED / "split.csv", "prepare")
    frame = pd.read_csv(table, dtype={"patient": str, "group": str}, keep_default_na=False)
    if split is not None:
        frame = frame[frame["split"] == split]
    return np.load(PREPARED / "images.npy", mmap_mode="r"), frame


def digest() -> str:
    """SHA-256 that names the data in every record: it covers each image's hash, class and split."""
    return stage.sha256(PREPARED / "split.csv")
