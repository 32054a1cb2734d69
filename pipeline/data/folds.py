"""Folds for cross-validation: every group is held out once, under the rules of `splits`."""

import numpy as np
import pandas as pd

from pipeline.data import splits
from pipeline.data.splits import EMBARGO
from pipeline.params import Prepare
from pipeline.stage import Problem


def assign(frame: pd.DataFrame, prepare: Prepare, k: int, fold: int, seed: int) -> pd.Series:
    """Which split each row of split.csv is in, in fold 0..k-1: test in one fold, train, val or embargo in the others.

    Patients are dealt out class by class in an order drawn from the seed. Blocks keep their order of file numbers: each
    fold holds out a run of them, validation is the run after it, and a block is dropped at each boundary. A group that
    would lie on two sides (near-duplicates join blocks) keeps the side with more of its images; the rest is dropped.

    Raises Problem if a class has too few patients or blocks for k folds.
    """
    by_patient = prepare.patient is not None
    unit, gap = ("patients", 0) if by_patient else ("blocks", 1)
    units = frame["group"] if by_patient else _blocks(frame, prepare)
    home = frame["class"].groupby(units).agg(lambda classes: classes.mode()[0])  # a patient may have several classes
    val_share = prepare.fractions.val / (prepare.fractions.train + prepare.fractions.val)
    sides: dict[str, str] = {}
    for key in sorted(home.unique()):
        names = sorted(home.index[home == key])
        if by_patient:
            names = list(np.random.default_rng([seed, len(names)]).permutation(names))
        first, end = (len(names) * i // k for i in (fold, fold + 1))
        rest = names[end:] + names[:first]
        val = max(1, round(val_share * (len(rest) - 3 * gap)))
        if end == first or len(rest) < val + 1 + 3 * gap:
            raise Problem(f"class {key} has {len(names)} {unit}: too few for {k} folds; take fewer folds")
        sides |= dict.fromkeys(names[first:end], "test") | dict.fromkeys(rest, "train")
        sides |= dict.fromkeys(rest[gap : gap + val], "val")
        if gap:
            sides |= dict.fromkeys([rest[0], rest[gap + val], rest[-1]], EMBARGO)
    result = units.map(sides)
    home = result[result != EMBARGO].groupby(frame["group"]).agg(lambda mine: mine.value_counts().idxmax())
    return result.where(result == frame["group"].map(home), EMBARGO)


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


def _blocks(frame: pd.DataFrame, prepare: Prepare) -> pd.Series:
    """Each row's class and block, as text that sorts."""
    return frame["class"] + [f"-{number:09d}" for number in splits.block_numbers(frame["path"], prepare)]
