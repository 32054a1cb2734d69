"""Decodes every usable image once, as the server does, and splits them into train, val and test.

Reads:  data/manifest.csv, data/raw/
Writes: data/prepared/images.npy (uint8 [N, S, S, 3], RGB), data/prepared/split.csv (rows aligned with it)
Run:    python -m pipeline.prepare
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from leukdetect import images
from pipeline import params, stage
from pipeline.data import manifest, prepared, splits
from pipeline.data.source import RAW


def main() -> None:
    recipe = params.load()
    frame = splits.assign(manifest.read(), recipe.prepare, recipe.seed)
    frame["label"] = frame["class"].map({c.key: i for i, c in enumerate(recipe.classes)})

    with stage.writing(prepared.PREPARED) as folder:
        folder.mkdir()
        size = recipe.prepare.image_size
        shape = (len(frame), size, size, 3)
        pixels = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)

        def decode(row: int, path: str) -> None:
            pixels[row] = images.resize(images.decode((RAW / path).read_bytes()), size)

        with ThreadPoolExecutor() as pool:
            done = pool.map(decode, range(len(frame)), frame["path"])
            for _ in stage.progress(done, "decode", total=len(frame)):
                pass
        pixels.flush()
        frame[prepared.COLUMNS].to_csv(folder / "split.csv", index=False)

    print(pd.crosstab(frame["class"], frame["split"], margins=True).to_string())
    unit = "patients" if recipe.prepare.patient else "blocks"
    for split in splits.SPLITS:
        print(f"{split}: {frame.loc[frame['split'] == split, 'group'].nunique()} {unit}")


if __name__ == "__main__":
    stage.run(main)
