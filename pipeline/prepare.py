"""Decodes every usable image once, as the server will, and decides who is held out.

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
    label = {c.key: i for i, c in enumerate(recipe.classes)}
    frame["label"] = frame["class"].map(label)

    with stage.writing(prepared.PREPARED) as folder:
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
        frame[prepared.COLUMNS].to_csv(folder / "split.csv", index=False)

    print(pd.crosstab(frame["class"], frame["split"], margins=True).to_string())
    unit = "patients" if recipe.prepare.patient else "blocks"
    print(
        "\n".join(f"{split}: {frame.loc[frame['split'] == split, 'group'].nunique()} {unit}" for split in splits.SPLITS)
    )


if __name__ == "__main__":
    stage.run(main)
