"""Splits that do not leak: by patient where the file name carries one, else by blocks of file numbers.

Neighbouring file numbers come from one session at the microscope, so a random split would put nearly the same image on
both sides. Here whole blocks are held out, one block is dropped at each boundary (the embargo), and blocks that share
near-duplicate images are never on two sides.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, eye_array, kron
from scipy.sparse.csgraph import connected_components

from pipeline.sections import Fractions, Prepare
from pipeline.stage import Problem

SPLITS = ("train", "val", "test")
EMBARGO = "embargo"


def assign(manifest: pd.DataFrame, prepare: Prepare, seed: int) -> pd.DataFrame:
    """Adds `patient` ('' where unknown), `group` and `split` to a manifest's rows.

    A group is the unit that never crosses a split and that intervals are bootstrapped over: a patient, or a block of
    `prepare.block` file numbers joined with the blocks that hold its near-duplicates.

    Raises Problem if a file name carries no patient or no number, or a class is missing from a split.
    """
    frame = manifest.copy()
    if prepare.patient is not None:
        frame["patient"] = [find(prepare.patient, "patient", path) for path in frame["path"]]
        frame["group"] = frame["patient"]
        frame["split"] = frame["patient"].map(_patients_to_splits(frame, prepare.fractions, seed))
    else:
        frame["patient"] = ""
        blocks = block_numbers(frame["path"], prepare)
        names = [f"{key}-{block:03d}" for key, block in zip(frame["class"], blocks, strict=True)]
        frame["group"] = _join(names, near_duplicates(frame["dhash"], prepare.near_duplicate_bits))
        split = _blocks_to_splits(frame["class"], blocks, prepare.fractions)
        # A group on two sides keeps the side with more of its images; the rest is dropped, not moved: moved blocks
        # would lie beside blocks of another split.
        sizes = split[split != EMBARGO].groupby([frame["group"], split]).size()
        home = sizes.groupby(level=0).agg(lambda mine: mine.idxmax()[1])
        frame["split"] = split.where(split == frame["group"].map(home), EMBARGO)
    _check_every_class_everywhere(frame)
    return frame


def block_numbers(paths: Iterable[str], prepare: Prepare) -> np.ndarray:
    """Which run of `prepare.block` neighbouring file numbers each file is in: [N]. Raises Problem, as `assign` does."""
    return np.array([int(find(prepare.number, 1, path)) // prepare.block for path in paths])


def near_duplicates(dhash: pd.Series, bits: int) -> np.ndarray:
    """Pairs of rows [P, 2] whose 64-bit difference hashes (hex strings) differ in at most `bits` bits."""
    hashes = np.array([int(value, 16) for value in dhash], np.uint64)
    pairs = []
    for row in range(len(hashes)):
        near = np.flatnonzero(np.bitwise_count(hashes[row + 1 :] ^ hashes[row]) <= bits) + row + 1
        pairs.append(np.column_stack([np.full(len(near), row), near]))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), int)


def find(pattern: str, group: str | int, path: str) -> str:
    """What a group of the pattern finds in a file's name, or else in its path; Problem if it finds nothing."""
    whole = str(PurePosixPath(path).with_suffix(""))
    stem = whole.rpartition("/")[2]
    match = re.search(pattern, stem) or re.search(pattern, whole)
    if match is None:
        raise Problem(
            f"neither {stem!r} nor {whole!r} matches {pattern!r}. Change prepare.patient or prepare.number in "
            "params.yaml to fit the names; with patient: null the split goes by file numbers. Folders above a "
            "class's are in the path only where fetch.label or fetch.table says which class an image has."
        )
    return match[group]


def _patients_to_splits(frame: pd.DataFrame, fractions: Fractions, seed: int) -> dict[str, str]:
    """Each patient's split: by a hash of the name, so that one who is added moves no other.

    With few patients, chance may leave a class short of a split: with less than half of its share of patients, two in
    test and one elsewhere; one, where no more can be had. Then the fewest patients that mend it move, those whose hash
    is nearest first (an integer program). Only such a class may see a patient move when one is added.
    """
    holds = pd.crosstab(frame["patient"], frame["class"]) > 0  # a patient may have several classes
    digests = [hashlib.sha256(f"{seed}:{patient}".encode()).digest() for patient in holds.index]
    place = np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])[:, None]
    share = np.array([getattr(fractions, name) for name in SPLITS])
    ends = share.cumsum()
    away = np.maximum(0, np.maximum(ends - share - place, place - ends))  # [patients, splits]: 0 where the hash says
    chosen = away == away.min(axis=1, keepdims=True)
    classes, n = holds.to_numpy(float).T, len(holds)
    for least in (np.maximum([1, 1, 2], classes.sum(1)[:, None] * share // 2), np.ones((len(classes), len(SPLITS)))):
        if (classes @ chosen >= least).all():
            break
        one_each = LinearConstraint(kron(eye_array(n), np.ones((1, len(SPLITS)))), 1, 1)
        enough = LinearConstraint(kron(classes, eye_array(len(SPLITS))), least.ravel())
        found = milp((away + (away > 0)).ravel(), integrality=1, bounds=Bounds(0, 1), constraints=[one_each, enough])
        if found.success:
            chosen = found.x.reshape(n, -1).round().astype(bool)
            break
    return {patient: SPLITS[int(row.argmax())] for patient, row in zip(holds.index, chosen, strict=True)}


def _blocks_to_splits(classes: pd.Series, blocks: np.ndarray, fractions: Fractions) -> pd.Series:
    """Train, val and test lie one after the other along each class's blocks, an embargo block between them.

    An image added within the range changes nothing. One that opens a new block at the end moves each boundary by at
    most one block, the embargo's: no image goes from one split to another.
    """
    splits = pd.Series("test", classes.index)
    for key in classes.unique():
        mine = (classes == key).to_numpy()
        first, last = blocks[mine].min(), blocks[mine].max()
        usable = last - first + 1 - 2  # two embargo blocks
        to_val = first + round(usable * fractions.train)
        # From the sum, so that each boundary moves by one block at most when a block is added.
        to_test = max(first + 1 + int(usable * (fractions.train + fractions.val) + 1e-9), to_val + 2)
        splits[mine & (blocks < to_test)] = "val"
        splits[mine & (blocks < to_val)] = "train"
        splits[mine & np.isin(blocks, (to_val, to_test))] = EMBARGO
    return splits


def _join(names: list[str], pairs: np.ndarray) -> list[str]:
    """Names each row after the first of the blocks that chains of near-duplicate pairs join to its own."""
    blocks, codes = np.unique(names, return_inverse=True)
    shape = (len(blocks), len(blocks))
    links = coo_array((np.ones(len(pairs)), (codes[pairs[:, 0]], codes[pairs[:, 1]])), shape)
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    return [str(name) for name in blocks[first[component[codes]]]]


def _check_every_class_everywhere(frame: pd.DataFrame) -> None:
    for split in SPLITS:
        present = set(frame.loc[frame["split"] == split, "class"])
        for key, rows in frame.groupby("class"):
            if key not in present:
                raise Problem(
                    f"class {key} has no image in the {split} split ({rows['group'].nunique()} patients or blocks). "
                    "Add data, or change seed, prepare.fractions or prepare.block in params.yaml."
                )
