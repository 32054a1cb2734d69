"""What each file of data/raw turned out to be, before any is judged."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from leukdetect import apart, images
from pipeline.stage import Problem, progress

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
    note: str | None = None  # what of the file was left out, such as a broken colour profile


def look(path: Path, max_side: int) -> Facts:
    """Reads one file as it is, with the decoder that training and serving use.

    Beyond `max_side` pixels a side only the header is read: the pixels might not fit in memory.
    """
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        header = apart.header(data)
        described = (sha256, None, header.width, header.height, header.format, header.mode)
        if max(header.width, header.height) > max_side:
            return Facts(*described)
        header, image = apart.whole(data, max(header.width, header.height))
    except images.ImageError as error:
        return Facts(sha256, str(error))
    pixels = np.asarray(image)
    brightness, sharpness = (round(measure, _DECIMALS) for measure in images.quality(pixels))
    return Facts(*described, f"{dhash(image):016x}", brightness, sharpness, header.note)


def dhash(image: Image.Image) -> int:
    """64-bit difference hash: is each of 8 × 8 pixels brighter than its left neighbour?

    Two images that differ in few bits look alike, whatever their size and compression.
    N. Krawetz 2013, "Kind of Like That", hackerfactor.com. The first bit is the top left's, and the highest.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def look_at_all(raw: Path, max_side: int) -> pd.DataFrame:
    """A row for every file under `raw`, sorted by path: what `look` found, and its class.

    Raises Problem if there is no file.
    """
    files = {path.relative_to(raw).as_posix(): path for path in raw.rglob("*") if path.is_file()}
    if not files:
        raise Problem(f"{raw} holds no images; `dvc repro fetch` puts them there")
    names = sorted(files)
    # Threads, since reading, decoding and NumPy all release Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda name: look(files[name], max_side), names)
        table = pd.DataFrame([asdict(facts) for facts in progress(looks, "looking", total=len(names))])
    table.insert(0, "path", names)
    table.insert(1, "class", [name.split("/")[0] if "/" in name else "(none)" for name in names])
    sides = table[["width", "height"]].astype(float)
    table[["width", "height"]] = sides.astype("Int64")  # unreadable files have none; the others stay whole numbers
    return table.assign(shorter_side=sides.min(axis=1), longer_side=sides.max(axis=1))


def mark_copies(images: pd.DataFrame) -> pd.DataFrame:
    """Adds what the bytes of readable files say, for a table that is sorted by path.

    `copy_of` is the first file of the same class with the same bytes (None for that file itself);
    `also_under` is the first file with the same bytes in another class.
    """
    readable = images[images["problem"].isna()]
    first = readable.groupby(["class", "sha256"])["path"].transform("first")
    copy_of = first.where(first != readable["path"])

    firsts = readable[copy_of.isna()]
    twins = firsts.merge(firsts, on="sha256", suffixes=("", "_elsewhere")).query("`class` != class_elsewhere")
    elsewhere = twins.groupby(["class", "sha256"])["path_elsewhere"].first()
    also_under = readable.join(elsewhere, on=["class", "sha256"])["path_elsewhere"]
    return images.assign(copy_of=copy_of, also_under=also_under)


def count_classes(images: pd.DataFrame, usable: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row for each declared class, in their order: usable images, unreadable files, copies, imbalance.

    `imbalance` is the size of the largest class ÷ the size of this one; none for a class without images.
    """
    tables = {
        "images": usable,
        "unreadable": images[images["problem"].notna()],
        "copies": images[images["copy_of"].notna()],
    }
    counts = pd.DataFrame({name: table["class"].value_counts() for name, table in tables.items()}, pd.Index(keys))
    counts = counts.fillna(0).astype(int)
    counts["imbalance"] = (counts["images"].max() / counts["images"].where(counts["images"] > 0)).round(4)
    return counts.rename_axis("class").reset_index()
