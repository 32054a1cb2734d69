"""The images as training and serving see them, and who is held out: what `pipeline.prepare` writes."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import stage
from pipeline.stage import Problem

PREPARED = Path("data/prepared")
COLUMNS = ["path", "class", "label", "sha256", "patient", "group", "split"]  # of split.csv


def read(split: str | None = None) -> tuple[np.ndarray, pd.DataFrame]:
    """The prepared images [N, S, S, 3] (uint8, memory-mapped) and their rows of split.csv, aligned.

    Args:
        split: train, val or test; None for every row. With a split, the rows' index says where each
            image stands in the array of all: use `images[rows.index]`.
    """
    if not (PREPARED / "split.csv").is_file():
        raise Problem(f"{PREPARED}/ is missing; `dvc repro prepare` makes it")
    frame = pd.read_csv(PREPARED / "split.csv", dtype={"patient": str, "group": str}, keep_default_na=False)
    if split is not None:
        frame = frame[frame["split"] == split]
    return np.load(PREPARED / "images.npy", mmap_mode="r"), frame


def digest() -> str:
    """SHA-256 that stands for the data in every record: it covers each image's hash, class and split."""
    return stage.sha256(PREPARED / "split.csv")
