"""Decodes every usable image once, as the server will, and decides who is held out.

Reads:  data/manifest.csv, data/raw/
Writes: data/prepared/images.npy (uint8 [N, S, S, 3], RGB), data/prepared/split.csv (rows aligned with it)
Run:    python -m pipeline.prepare
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from leukdetect import images
from pipeline import params, stage
from pipeline.data import manifest, splits
from pipeline.stage import Problem

RAW = Path("data/raw")
PREPARED = Path("data/prepared")


def main() -> None:
    recipe = params.load()
    frame = splits.assign(manifest.read(), recipe.prepare, recipe.seed)
    label = {c.key: i for i, c in enumerate(recipe.classes)}
    frame["label"] = frame["class"].map(label)

    with stage.writing(PREPARED) as folder:
        folder.mkdir()
        size = recipe.prepare.image_size
        pixels = np.lib.format.open_memmap(
            folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(frame), size, size, 3)
        )

        def decode(item: tuple[int, str]) -> None:
            row, path = item
            pixels[row] = images.resize(images.decode((RAW / path).read_bytes()), size)

        with ThreadPoolExecutor() as pool:
            done = pool.map(decode, enumerate(frame["path"]))
            for _ in stage.progress(done, "decode", total=len(frame)):
                pass
        pixels.flush()
        columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
        frame[columns].to_csv(folder / "split.csv", index=False)

    print(pd.crosstab(frame["class"], frame["split"], margins=True).to_string())
    unit = "patients" if recipe.prepare.patient else "blocks"
    print(
        "\n".join(f"{split}: {frame.loc[frame['split'] == split, 'group'].nunique()} {unit}" for split in splits.SPLITS)
    )


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


if __name__ == "__main__":
    stage.run(main)
