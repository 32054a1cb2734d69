"""The data's own sheet, after Gebru et al. 2021, "Datasheets for Datasets": written by the run, never by hand."""

from pathlib import Path
from typing import Any

import pandas as pd

from leukdetect import page
from pipeline.data import splits

SHEET = Path(__file__).with_name("datasheet.md.jinja")
SYNTHETIC = "SYNTHETIC DEMO: no clinical meaning"


def render(source: dict[str, Any], split: pd.DataFrame, size: int, folds: int = 0) -> str:
    """The sheet as Markdown: of data/source.json, split.csv, how many pixels a side the model takes, and the folds."""
    names = [name for name in (*splits.SPLITS, splits.EMBARGO) if name in set(split["split"])]
    return page.render(
        SHEET,
        source=source,
        split=split,
        size=size,
        names=names,
        folds=folds,
        patients=patients(split),
        synthetic=SYNTHETIC,
    )


def patients(split: pd.DataFrame) -> int:
    """How many the split names; 0 if the data names none."""
    return int(split.loc[split["patient"] != "", "patient"].nunique())
