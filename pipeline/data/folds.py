"""Folds for cross-validation: every group is held out once, under the rules of `splits`."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import stage
from pipeline.data import prepared, splits
from pipeline.data.splits import EMBARGO
from pipeline.sections import Prepare
from pipeline.stage import Problem

SIDES = Path("data/folds/folds.csv")  # a row an image, as in split.csv; a column a fold, of `held_out`


def assign(frame: pd.DataFrame, prepare: Prepare, k: int, fold: int, seed: int) -> pd.Series:
    """Which split each row of split.csv is in, in fold 0..k-1: test in one fold, train, val or embargo in the others.

    Patients are dealt out class by class in an order drawn from the seed. Blocks keep their order of file numbers: each
    fold holds out a run of them, validation is the run after it, and a block is dropped at each boundary. A group that
    would lie on two sides (near-duplicates join blocks) keeps the side with more of its images; the rest is dropped.

    Raises Problem if a class has too few patients or blocks for k folds.
    """
    gap = 0 if prepare.patient is not None else 1
    val_share = prepare.fractions.val / (prepare.fractions.train + prepare.fractions.val)
    units, named = _units(frame, prepare, seed)
    sides: dict[str, str] = {}
    for key, names in named.items():
        first, end = (len(names) * i // k for i in (fold, fold + 1))
        rest = names[end:] + names[:first]
        val = max(1, round(val_share * (len(rest) - 3 * gap)))
        if end == first or len(rest) < val + 1 + 3 * gap:
            raise _too_few(key, names, k, gap)
        sides |= dict.fromkeys(names[first:end], "test") | dict.fromkeys(rest, "train")
        sides |= dict.fromkeys(rest[gap : gap + val], "val")
        if gap:
            sides |= dict.fromkeys([rest[0], rest[gap + val], rest[-1]], EMBARGO)
    result = units.map(sides)
    home = result[result != EMBARGO].groupby(frame["group"]).agg(lambda mine: mine.value_counts().idxmax())
    return result.where(result == frame["group"].map(home), EMBARGO)


def held_out(frame: pd.DataFrame, prepare: Prepare, k: int, seed: int) -> pd.DataFrame:
    """Which split each row of split.csv is in, in each of k folds, the columns: test in just one, train or embargo in
    the others. No validation: what is trained so takes no choice from it.

    Patients and blocks are dealt out as by `assign`. The block on each side of the held-out run is dropped, and
    whatever else shares a group (near-duplicates) with an image that is held out.

    Raises Problem if a class has too few patients or blocks for k folds.
    """
    gap = 0 if prepare.patient is not None else 1
    units, named = _units(frame, prepare, seed)
    columns = {}
    for fold in range(k):
        sides: dict[str, str] = {}
        for key, names in named.items():
            first, end = (len(names) * i // k for i in (fold, fold + 1))
            beside = names[max(0, first - gap) : first] + names[end : end + gap]
            if end == first or len(names) - (end - first) - len(beside) < 1:
                raise _too_few(key, names, k, gap)
            sides |= dict.fromkeys(names, "train") | dict.fromkeys(names[first:end], "test")
            sides |= dict.fromkeys(beside, EMBARGO)
        split = units.map(sides)
        shared = frame["group"].isin(set(frame["group"][split == "test"]))
        columns[str(fold)] = split.mask((split == "train") & shared, EMBARGO)
    return pd.DataFrame(columns, index=frame.index)


def read(frame: pd.DataFrame) -> pd.DataFrame:
    """What `held_out` gave, as `prepare` wrote it. Raises Problem if it is not of these rows of split.csv."""
    sides = pd.read_csv(stage.require(SIDES, "prepare"), dtype=str)
    if sides["sha256"].tolist() != frame["sha256"].tolist():
        raise Problem(f"{SIDES} is of other images than {prepared.PREPARED}; `dvc repro -f prepare` makes both")
    return sides.drop(columns=["sha256", "class", "group"]).set_index(frame.index)


def folder(fold: int, seed: int) -> Path:
    """Where `pipeline.fold` leaves what a training said."""
    return SIDES.parent / f"{seed}-{fold}"


def thin(split: pd.Series, frame: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Drops training groups until a share of each class's is left, one at least: a point of a learning curve.

    What a smaller share keeps, a larger one keeps too.
    """
    train = frame[split == "train"]
    kept: set[str] = set()
    for _, rows in train.groupby("class"):
        names = np.random.default_rng(seed).permutation(sorted(set(rows["group"])))
        kept |= set(names[: max(1, round(share * len(names)))])
    return split.where((split != "train") | frame["group"].isin(kept), EMBARGO)


def _units(frame: pd.DataFrame, prepare: Prepare, seed: int) -> tuple[pd.Series, dict[str, list[str]]]:
    """Each row's patient, or class and block; and the units of each class, in the order in which they are dealt out."""
    by_patient = prepare.patient is not None
    if by_patient:
        units = frame["group"]
    else:  # as text that sorts
        units = frame["class"] + [f"-{number:09d}" for number in splits.block_numbers(frame["path"], prepare)]
    home = frame["class"].groupby(units).agg(lambda classes: classes.mode()[0])  # a patient may have several classes
    named = {}
    for key in sorted(home.unique()):
        names = sorted(home.index[home == key])
        named[key] = list(np.random.default_rng([seed, len(names)]).permutation(names)) if by_patient else names
    return units, named


def _too_few(key: str, names: list[str], k: int, gap: int) -> Problem:
    unit = "blocks" if gap else "patients"
    return Problem(f"class {key} has {len(names)} {unit}: too few for {k} folds; take fewer folds")
