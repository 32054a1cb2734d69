"""What each file of data/raw turned out to be, before any is judged."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from leukdetect import images
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


def look_at_all(raw: Path, max_side: int) -> pd.DataFrame:
    """A row for every file under `raw`, sorted by path: what `look` found, and its class.

    Raises Problem if there is no file.
    """
    paths = sorted(path for path in raw.rglob("*") if path.is_file())
    if not paths:
        raise Problem(f"{raw} holds no images; `dvc repro fetch` puts them there")
    # Threads, since reading, decoding and NumPy all let go of Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda path: look(path, max_side), paths)
        table = pd.DataFrame([asdict(facts) for facts in progress(looks, "looking", total=len(paths))])
    names = [path.relative_to(raw) for path in paths]
    table.insert(0, "path", [name.as_posix() for name in names])
    table.insert(1, "class", [name.parts[0] if len(name.parts) > 1 else "(none)" for name in names])
    for side in ("width", "height"):
        table[side] = table[side].astype("Int64")  # whole numbers in the manifest, though unreadable files have none
    sides = table[["width", "height"]].astype(float)
    table = table.assign(shorter_side=sides.min(axis=1), longer_side=sides.max(axis=1))
    return table.sort_values("path", ignore_index=True)


def mark_copies(images: pd.DataFrame) -> pd.DataFrame:
    """Adds what the bytes of readable files say, for a table that is sorted by path.

    `copy_of` is the first file of the same class with the same bytes (None for that file itself);
    `also_under` is the first file with the same bytes in another class.
    """
    readable = images[images["problem"].isna()]
    first = readable.groupby(["class", "sha256"])["path"].transform("first")
    copy_of = first.where(first != readable["path"])

    firsts = readable[copy_of.isna()]
    twins = firsts.merge(firsts, on="sha256", suffixes=("", "_elsewhere"))
    twins = twins[twins["class"] != twins["class_elsewhere"]]
    elsewhere = twins.groupby(["class", "sha256"])["path_elsewhere"].first()
    also_under = readable.join(elsewhere, on=["class", "sha256"])["path_elsewhere"]
    return images.assign(copy_of=copy_of, also_under=also_under)


def count_classes(images: pd.DataFrame, usable: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row for each declared class, in their order: usable images, unreadable files, copies, imbalance.

    `imbalance` is the size of the largest class ÷ the size of this one; none for a class without images.
    """
    count = usable["class"].value_counts().reindex(keys, fill_value=0)
    columns = {
        "images": count,
        "unreadable": images[images["problem"].notna()]["class"].value_counts().reindex(keys, fill_value=0),
        "copies": images[images["copy_of"].notna()]["class"].value_counts().reindex(keys, fill_value=0),
        "imbalance": (count.max() / count.where(count > 0)).round(4),
    }
    return pd.DataFrame(columns).rename_axis("class").reset_index()
