"""Folders of cells to pretrain on: labelled sets, whose classes are their subfolders, and folders without labels."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data import decoded, walk
from pipeline.stage import Problem

TRAIN, HELD_OUT, LEFT_OUT = "train", "held out", "left out"


@dataclass(frozen=True)
class Cells:
    """Images of all sets, uint8 [N, H, H, 3], and what each of them is."""

    pixels: np.ndarray
    rows: pd.DataFrame  # set, class ('' in a folder without labels), path, sha256, problem, side
    left_out: Counter[str]  # files, by reason

    @cached_property
    def sets(self) -> dict[str, list[str]]:
        """The classes of each label set, sorted."""
        known = self.rows[self.rows["class"] != ""]
        return {str(name): sorted(set(rows["class"])) for name, rows in known.groupby("set", sort=False)}

    @cached_property
    def owner(self) -> np.ndarray:
        """Each image's label set, as a place in `sets`; -1: it has no label."""
        return pd.Index(self.sets).get_indexer(self.rows["set"]).astype(np.int32)

    @cached_property
    def label(self) -> np.ndarray:
        """Each image's class, as a place in its set's; 0 without a label."""
        named = zip(self.rows["set"], self.rows["class"], strict=True)
        return np.array([self.sets[name].index(key) if key else 0 for name, key in named], np.int32)

    def of(self, side: str, *, labelled: bool) -> np.ndarray:
        """The numbers of the images of a side, with or without labels."""
        return np.flatnonzero((self.rows["side"] == side) & ((self.rows["class"] != "") == labelled))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of which images there are, of which sets and classes, and on which side."""
        return hashlib.sha256(self.rows[["set", "class", "path", "sha256", "side"]].to_csv().encode()).hexdigest()

    def table(self) -> pd.DataFrame:
        """How many images lie on each side, by set and class."""
        return pd.crosstab([self.rows["set"], self.rows["class"]], self.rows["side"])


def read(labelled: Sequence[Path], unlabelled: Sequence[Path], hold_out: float, size: int, out: Path) -> Cells:
    """Finds, decodes (into the file `out`) and divides all images. Raises Problem, as `find` and `divide` do."""
    left_out: Counter[str] = Counter()
    found = find(labelled, unlabelled, left_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    digests, problems = zip(*decoded.write(list(found["file"]), size, out), strict=True)
    broken = [f"broken: {problem}" if problem else "" for problem in problems]
    rows = divide(found.assign(sha256=digests, problem=broken), hold_out)
    for problem in rows.loc[rows["side"] == LEFT_OUT, "problem"]:
        left_out[problem or "copies"] += 1
    return Cells(np.load(out, mmap_mode="r"), rows, left_out)


def find(labelled: Sequence[Path], unlabelled: Sequence[Path], left_out: Counter[str]) -> pd.DataFrame:
    """A row for each image, sorted: set, class ('' in a folder without labels), path below the folder, and file.

    A set is called as its folder, numbered where two have one name. What is passed over is counted in `left_out`.

    Raises Problem if a folder is missing or holds no images, or a labelled one has fewer than two classes.
    """
    rows: list[tuple[str, str, str, Path]] = []
    taken: Counter[str] = Counter()
    for folder, has_labels in [*((each, True) for each in labelled), *((each, False) for each in unlabelled)]:
        if not folder.is_dir():
            raise Problem(f"{folder} is no folder; give one that holds images")
        name = re.sub(r"[^\w.-]", "_", folder.resolve().name)
        taken[name] += 1
        name += f"-{taken[name]}" if taken[name] > 1 else ""
        passed = Counter[str]()
        classes = set()
        for file in sorted(walk.image_files(folder, passed)):
            path = file.relative_to(folder)
            if has_labels and len(path.parts) == 1:
                passed["images in no class's folder"] += 1
                continue
            classes.add(key := path.parts[0] if has_labels else "")
            rows.append((name, key, path.as_posix(), file))
        if len(classes) < 1 + has_labels:
            found = f"one class, {classes.pop()}" if classes else "no images"
            wanted = "a folder for each of two or more classes" if has_labels else "images"
            raise Problem(f"{folder} holds {found}{walk.but(passed)}; it must hold {wanted}")
        left_out.update(passed)
    return pd.DataFrame(rows, columns=["set", "class", "path", "file"])


def divide(read: pd.DataFrame, hold_out: float) -> pd.DataFrame:
    """Adds `side`: of each labelled class the last share by name is held out, at least one.

    Copies are left out, and images that lie in two classes of a set, whose label nobody knows. No copy of a held-out
    image trains, in a folder without labels neither.

    Raises Problem if a class, or a folder without labels, has nothing left to train on.
    """
    known = read[(read["problem"] == "") & (read["class"] != "")]
    both = known.groupby(["set", "sha256"])["class"].transform("nunique") > 1
    read = read.assign(problem=read["problem"].mask(both.reindex(read.index, fill_value=False), "under two classes"))
    usable = read[(read["problem"] == "") & ~read.duplicated(["set", "class", "sha256"])]
    known = usable[usable["class"] != ""]
    side = pd.Series(LEFT_OUT, read.index)
    side[usable.index] = TRAIN
    for _, rows in known.groupby(["set", "class"]):
        side[rows.index[len(rows) - (max(1, round(hold_out * len(rows))) if hold_out else 0) :]] = HELD_OUT
    side[(side == TRAIN) & read["sha256"].isin(set(read.loc[side == HELD_OUT, "sha256"]))] = LEFT_OUT
    for (name, key), sides in side.groupby([read["set"], read["class"]]):
        if TRAIN not in set(sides):
            what = f"class {key} of {name}" if key else name
            raise Problem(
                f"{what} has no image to train on: {', '.join(f'{n} {s}' for s, n in Counter(sides).items())}"
            )
    return read.assign(side=side)
