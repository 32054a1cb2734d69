"""Which answers a person should look at, what a reader made of them, and which labels are suspected to be wrong."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation import compare, metrics
from pipeline.evaluation.abstention import CHECKS
from pipeline.evaluation.answers import Answers
from pipeline.evaluation.reader_study import cohen
from pipeline.stage import Problem

READER = "reader"  # the column that a person fills in
UNCLEAR = "unclear"  # what may be said instead of a class
READ = ["image", "class", "predicted", "why", READER]  # columns


def why(fp32: Answers, int8: Answers, labels: np.ndarray, near: np.ndarray | None) -> list[str]:
    """Why a person should look at each of N images, in words; empty where nothing speaks for it.

    Args:
        labels: int [N].
        near: int [N, 5], the classes of the most similar training images; None without an index of them.
    """
    apart = fp32.predicted != int8.predicted
    if near is not None:  # most of them are of another class than the answer
        apart |= (near == fp32.predicted[:, None]).mean(axis=1) < 0.5
    flags = {
        "wrong": fp32.predicted != labels,
        "uncertain": np.array([bool(each & CHECKS["scores"]) for each in fp32.reasons]),
        "unlike": np.array(["unlike_training_images" in each for each in fp32.reasons]),
        "disagreement": apart,
    }
    return [" ".join(name for name, flag in flags.items() if flag[i]) for i in range(len(labels))]


def read(path: Path, labels: dict[str, str]) -> pd.DataFrame:
    """The rows of a list that a reader filled in. `labels`: each class's key by what people call it.

    Raises Problem if the file is no such list, nothing is filled in, or a word is no class.
    """
    read = compare.read_columns(path, READ, "`python -m pipeline.calls` writes such a file")
    known = {name.casefold(): key for key, label in labels.items() for name in (key, label)}
    said = read[READER].str.strip().str.casefold()
    keys = said.map(known | {UNCLEAR: UNCLEAR, "": ""})
    if len(wrong := keys.index[keys.isna()]):
        what = f"{path}, line {wrong[0] + 2}: {said[wrong[0]]!r} is no class"
        raise Problem(f"{what}; use {', '.join(labels)} or {UNCLEAR}")
    if not keys.any():
        raise Problem(f"{path}: the column {READER} is empty everywhere; fill in a class, or {UNCLEAR}")
    return read.assign(**{READER: keys})[keys != ""]


def agreement(read: pd.DataFrame) -> str:
    """How far the reader agrees with the labels and with the model, as text."""
    decided = read[read[READER] != UNCLEAR]
    lines = [f"{len(read)} images read, {len(read) - len(decided)} of them {UNCLEAR}"]
    for what, column in (("label", "class"), ("model", "predicted")):
        same = (decided[READER] == decided[column]).to_numpy()
        kappa = cohen(decided[[READER, column]].to_numpy(str), np.ones((1, len(decided))))[0]
        beyond = "" if np.isnan(kappa) else f", kappa {kappa:.3f}"
        share = metrics.wilson(int(same.sum()), len(same))
        lines.append(f"reader and {what}: {same.sum()} of {len(same)} alike, {share}{beyond}")
    return "\n".join([*lines, "These images were chosen for doubt: of all images readers and labels agree more often."])


def suspected(read: pd.DataFrame) -> pd.DataFrame:
    """The images whose label the reader contradicts, those first where the model says as the reader does."""
    found = read[(read[READER] != UNCLEAR) & (read[READER] != read["class"])]
    sides = np.where(found["predicted"] == found[READER], "reader and model", "reader")
    columns = ["image", "class", READER, "predicted", "against"]
    return found.assign(against=sides).sort_values("against", ascending=False, kind="stable")[columns]
