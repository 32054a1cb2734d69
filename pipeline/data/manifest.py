"""`data/manifest.csv`: what is known of each usable image before anything is learnt from it.

`pipeline.validate` writes it; later stages read it and never list `data/raw` themselves.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from leukdetect import images
from pipeline import stage

MANIFEST_FILE = Path("data/manifest.csv")
COLUMNS = ["path", "class", "sha256", "dhash", "width", "height", "format", "mode", "brightness", "sharpness"]
_DECIMALS = 4  # of brightness and sharpness: enough to compare, few enough to diff


@dataclass(frozen=True)
class Facts:
    """What one file turned out to be. What could not be found out is None."""

    sha256: str
    problem: str | None = None  # why it cannot be used; None when it can
    width: int | None = None
    height: int | None = None
    format: str | None = None
    mode: str | None = None
    dhash: str | None = None
    brightness: float | None = None
    sharpness: float | None = None


def look(path: Path, max_side: int) -> Facts:
    """Reads one file as it is, with the decoder that training and serving use.

    Beyond `max_side` pixels a side only the header is read: the pixels might not fit in memory.
    """
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        header = images.header(data)
        size_and_kind = (header.width, header.height, header.format, header.mode)
        if max(header.width, header.height) > max_side:
            return Facts(sha256, None, *size_and_kind)
        image = images.decode(data)
    except images.ImageError as error:
        return Facts(sha256, str(error))
    pixels = np.asarray(image)
    return Facts(
        sha256,
        None,
        *size_and_kind,
        dhash=f"{dhash(image):016x}",
        brightness=round(images.brightness(pixels), _DECIMALS),
        sharpness=round(images.sharpness(pixels), _DECIMALS),
    )


def dhash(image: Image.Image) -> int:
    """64-bit difference hash: is each of 8 × 8 pixels brighter than its left neighbour?

    Two images that differ in few bits look alike, whatever their size and compression.
    N. Krawetz 2013, "Kind of Like That", hackerfactor.com. The first bit is the top left's, and the highest.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def write(table: pd.DataFrame, path: Path = MANIFEST_FILE) -> None:
    """Writes `COLUMNS` of the table, sorted by path, so that the same images give the same bytes."""
    with stage.writing(path) as temporary:
        table[COLUMNS].sort_values("path").to_csv(temporary, index=False, lineterminator="\n")


def read(path: Path = MANIFEST_FILE) -> pd.DataFrame:
    """Reads the manifest: a row an image, sorted by path; `dhash` stays 16 hex digits.

    Raises:
        Problem: it is missing.
    """
    if not path.is_file():
        raise stage.Problem(f"{path} is missing; `dvc repro validate` makes it")
    # A class or a hash may look like a number, or like one of pandas' words for a missing value.
    return pd.read_csv(path, dtype={"path": str, "class": str, "sha256": str, "dhash": str}, keep_default_na=False)
