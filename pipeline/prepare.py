"""Decodes every usable image once, as the server does, and splits them into train, val and test.

Reads:  data/manifest.csv, data/raw/
Writes: data/prepared/images.npy (uint8 [N, S, S, 3], RGB), data/prepared/split.csv (rows aligned with it);
        data/folds/folds.csv: with `estimate.folds`, which side each image is on in each of them; the model learns from
        all
Run:    python -m pipeline.prepare
"""

import numpy as np
import pandas as pd

from pipeline import params, stage
from pipeline.data import decoded, folds, manifest, prepared, splits
from pipeline.data.source import RAW
from pipeline.stage import Problem

SAME_FIELD = 6  # grey levels, mean difference; a field saved or scaled again differs by 1 to 4, two fields by far more


def main() -> None:
    recipe = params.load()
    frame = splits.assign(manifest.read(), recipe.prepare, recipe.seed)
    frame["label"] = frame["class"].map({c.key: i for i, c in enumerate(recipe.classes)})

    if recipe.evaluate.label_of == "patient":
        _check_one_class_each(frame)
    sides = folds.held_out(frame, recipe.prepare, len(recipe.estimate.folds), recipe.seed)
    if recipe.estimate.folds:
        frame["split"] = "train"

    with stage.writing(prepared.PREPARED) as folder:
        folder.mkdir()
        files = [RAW / path for path in frame["path"]]
        done = decoded.write(files, recipe.prepare.image_size, folder / "images.npy")
        for file, (_, problem) in zip(files, done, strict=True):
            if problem:
                raise Problem(f"{file} cannot be used: {problem}. Take it away, then run this again")
        pixels = np.load(folder / "images.npy", mmap_mode="r")
        if recipe.prepare.patient:
            _check_patients_differ(frame, pixels, recipe.prepare.near_duplicate_bits)
        frame[prepared.COLUMNS].to_csv(folder / "split.csv", index=False)
        stage.seal(folder / "images.npy")

    with stage.writing(folds.SIDES) as path:
        pd.concat([frame[["sha256", "class", "group"]], sides], axis=1).to_csv(path, index=False)

    print(pd.crosstab(frame["class"], frame["split"], margins=True).to_string())
    unit = "patients" if recipe.prepare.patient else "blocks"
    for split in [name for name in splits.SPLITS if name in set(frame["split"])]:
        print(f"{split}: {frame.loc[frame['split'] == split, 'group'].nunique()} {unit}")
    for fold in recipe.estimate.folds:
        side = sides[str(fold)]
        counts = ", ".join(f"{n} {name}" for name, n in side.value_counts().items())
        print(f"fold {fold}: {counts}, {frame.loc[side == 'test', 'group'].nunique()} {unit} held out")
    if recipe.estimate.folds:
        trainings = len(recipe.estimate.folds) * len(recipe.estimate.seeds)
        share = (sides == "train").to_numpy().mean()
        print(
            f"{trainings} trainings on {share:.0%} of the images come first: {trainings * share:.1f} times the model's"
        )


def _check_one_class_each(frame: pd.DataFrame) -> None:
    """Raises Problem if a patient has images of several classes, where a label is the patient's."""
    for patient, classes in frame.groupby("patient")["class"].unique().items():
        if len(classes) > 1:
            raise Problem(
                f"patient {patient} has images of {' and '.join(classes)}, but evaluate.label_of says that a label is "
                "the patient's. Correct the labels or prepare.patient, or set evaluate.label_of to image"
            )


def _check_patients_differ(frame: pd.DataFrame, pixels: np.ndarray, bits: int) -> None:
    """Raises Problem if two patients have an image of one field: one of them is not whom the name says."""
    pairs = [
        f"{frame['path'][a]} and {frame['path'][b]}"
        for a, b in splits.near_duplicates(frame["dhash"], bits)
        if frame["patient"][a] != frame["patient"][b]
        and np.abs(pixels[a].astype(np.int16) - pixels[b]).mean() < SAME_FIELD
    ]
    if pairs:
        raise Problem(
            f"one field under two patients, {len(pairs)} times, first {pairs[0]}. "
            "Find out whose it is and remove the other; or lower prepare.near_duplicate_bits if they only look alike"
        )


if __name__ == "__main__":
    stage.run(main)
