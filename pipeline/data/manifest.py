"""`data/manifest.csv`: the usable images, a row each. Stages after `pipeline.validate` never list `data/raw`."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import stage

MANIFEST_FILE = Path("data/manifest.csv")
COLUMNS = ["path", "class", "sha256", "dhash", "width", "height", "format", "mode", "brightness", "sharpness"]


def write(table: pd.DataFrame) -> None:
    """Writes `COLUMNS` of the table, sorted by path, so that the same images give the same bytes."""
    with stage.writing(MANIFEST_FILE) as temporary:
        table[COLUMNS].sort_values("path").to_csv(temporary, index=False, lineterminator="\n")


def read() -> pd.DataFrame:
    """Reads the manifest: a row an image, sorted by path; `dhash` stays 16 hex digits. Raises Problem if missing."""
    # A class or a hash may look like a number, or like one of pandas' words for a missing value.
    text = dict.fromkeys(["path", "class", "sha256", "dhash"], str)
    return pd.read_csv(stage.require(MANIFEST_FILE, "validate"), dtype=text, keep_default_na=False)


def sides(paths: pd.Series) -> np.ndarray:
    """√(width × height) of each file's pixels."""
    sizes = read().set_index("path").loc[paths, ["width", "height"]]
    return np.sqrt(sizes.prod(axis=1).to_numpy(float))
