"""`data/manifest.csv`: what is known of each usable image before anything is learnt from it.

`pipeline.validate` writes it; later stages read it and never list `data/raw` themselves.
"""

from pathlib import Path

import pandas as pd

from pipeline import stage
from pipeline.stage import Problem

MANIFEST_FILE = Path("data/manifest.csv")
COLUMNS = ["path", "class", "sha256", "dhash", "width", "height", "format", "mode", "brightness", "sharpness"]


def write(table: pd.DataFrame, path: Path = MANIFEST_FILE) -> None:
    """Writes `COLUMNS` of the table, sorted by path, so that the same images give the same bytes."""
    with stage.writing(path) as temporary:
        table[COLUMNS].sort_values("path").to_csv(temporary, index=False, lineterminator="\n")


def read(path: Path = MANIFEST_FILE) -> pd.DataFrame:
    """Reads the manifest: a row an image, sorted by path; `dhash` stays 16 hex digits.

    Raises Problem if it is missing.
    """
    if not path.is_file():
        raise Problem(f"{path} is missing; `dvc repro validate` makes it")
    # A class or a hash may look like a number, or like one of pandas' words for a missing value.
    return pd.read_csv(path, dtype={"path": str, "class": str, "sha256": str, "dhash": str}, keep_default_na=False)
