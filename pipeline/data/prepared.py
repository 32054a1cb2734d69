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
    return np.load(stage.require(PREPARED / "images.npy", "prepare"), mmap_mode="r"), frame


def held_out(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that the estimate is of: the test split, or all, where one of the folds held out each."""
    test = frame[frame["split"] == "test"]
    return frame if test.empty else test


def images(frame: pd.DataFrame) -> pd.Series:
    """What reports call an image, since a file's name may be a patient's: the first 12 hex digits of its SHA-256."""
    return frame["sha256"].str[:12]


def numbers(frame: pd.DataFrame) -> pd.Series:
    """What reports call a group, since its name may be a patient's: its place by the smallest hash of its images."""
    place = frame.groupby("group")["sha256"].min().rank(method="first").astype(int)
    return frame["group"].map(place.map("{:03d}".format))


def digest() -> str:
    """SHA-256 that names the data in every record: it covers each image's hash, class and split."""
    return stage.sha256(PREPARED / "split.csv")
