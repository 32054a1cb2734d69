"""Grouped folds: each group held out once, nothing on two sides."""

from itertools import pairwise

import pandas as pd
import pytest

from pipeline import params
from pipeline.data import folds
from pipeline.data.splits import EMBARGO
from pipeline.sections import Prepare
from pipeline.stage import Problem

SEED = 3


def recipe(patient: str | None) -> Prepare:
    return params.load().prepare.model_copy(update={"patient": patient, "block": 10, "number": r"(\d+)$"})


def patients(n: int = 9) -> pd.DataFrame:
    """Two classes of n patients with four images each."""
    rows = [(f"{c}/{c}-p{p}-{i}.jpg", c, f"{c}-p{p}") for c in ("a", "b") for p in range(n) for i in range(4)]
    return pd.DataFrame(rows, columns=["path", "class", "group"])


def blocks(n: int = 15) -> pd.DataFrame:
    """Two classes of n blocks of ten file numbers; blocks 3 and 9 of class a share near-duplicates."""
    rows = [(f"{c}/{i:03d}.jpg", c, f"{c}-{i // 10:03d}") for c in ("a", "b") for i in range(10 * n)]
    frame = pd.DataFrame(rows, columns=["path", "class", "group"])
    return frame.replace({"group": {"a-009": "a-003"}})


@pytest.mark.parametrize(("frame", "pattern"), [(patients(), "p"), (blocks(), None)])
@pytest.mark.parametrize("k", [2, 3])
def test_no_group_is_on_two_sides_and_every_class_is_on_each(frame: pd.DataFrame, pattern: str | None, k: int) -> None:
    for fold in range(k):
        split = folds.assign(frame, recipe(pattern), k, fold, SEED)
        kept = split != EMBARGO
        assert (split[kept].groupby(frame["group"][kept]).nunique() == 1).all()
        assert split[kept].groupby(frame["class"][kept]).nunique().tolist() == [3, 3]


def test_every_patient_is_held_out_once() -> None:
    frame = patients()
    held_out = pd.concat([frame[folds.assign(frame, recipe("p"), 3, fold, SEED) == "test"] for fold in range(3)])
    assert sorted(held_out["path"]) == sorted(frame["path"])


def test_between_held_out_blocks_and_all_others_lies_one_that_is_dropped() -> None:
    frame = blocks()
    for fold in range(3):
        split = folds.assign(frame, recipe(None), 3, fold, SEED)
        for _, mine in split.groupby(frame["class"]):
            sides = mine.tolist()
            changes = {frozenset(pair) for pair in pairwise(sides) if pair[0] != pair[1]}
            assert all(EMBARGO in change for change in changes)


def test_too_many_folds_are_refused_with_the_class() -> None:
    with pytest.raises(Problem, match="class a has 4 blocks: too few for 2 folds"):
        folds.assign(blocks(4), recipe(None), 2, 0, SEED)


@pytest.mark.parametrize(("frame", "pattern"), [(patients(), "p"), (blocks(), None)])
def test_every_image_is_held_out_once_by_a_training_that_saw_no_group_of_its_own(
    frame: pd.DataFrame, pattern: str | None
) -> None:
    split = folds.held_out(frame, recipe(pattern), 3, SEED)
    assert ((split == "test").sum(axis=1) == 1).all()
    for fold in split:
        seen, asked = (set(frame["group"][split[fold] == side]) for side in ("train", "test"))
        assert not seen & asked
        assert set(frame["class"][split[fold] == "train"]) == {"a", "b"}


def test_only_the_blocks_on_both_sides_of_a_held_out_run_are_dropped_with_what_shares_its_groups() -> None:
    frame = blocks()
    first = folds.held_out(frame, recipe(None), 3, SEED)["0"]  # holds out blocks 0 to 4 of 15
    dropped = {path[:4] for path in frame["path"][first == EMBARGO]}
    assert dropped == {"a/05", "a/09", "b/05"}  # block 9 of class a has near-duplicates of block 3
    with pytest.raises(Problem, match="class a has 2 blocks: too few for 2 folds"):
        folds.held_out(blocks(2), recipe(None), 2, SEED)


def test_thinning_drops_whole_training_groups_and_nothing_else() -> None:
    frame = patients()
    split = folds.assign(frame, recipe("p"), 3, 0, SEED)
    thinned = folds.thin(split, frame, 0.5, SEED)
    dropped = frame["group"][split != thinned]
    assert set(split[split != thinned]) == {"train"}
    assert (dropped.value_counts() == 4).all()
    assert set(frame["class"][thinned == "train"]) == {"a", "b"}
    assert (folds.thin(split, frame, 1.0, SEED) == split).all()
