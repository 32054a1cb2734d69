"""A reader study's results: how often readers and the model are right, and how far they agree.

Reads:  a CSV, a row a call: case, patient, truth, reader, call. The model is a reader of its own.
Run:    python -m pipeline.evaluation.reader_study calls.csv [--negative benign] [--model model]

Sensitivity and specificity are of malignant against benign: every call but those of --negative counts as positive, so
a case that the model refers is one that it did not call benign. Kappa is of the calls as they stand.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import stage
from pipeline.evaluation import compare, metrics
from pipeline.stage import Problem

COLUMNS = ["case", "patient", "truth", "reader", "call"]
RESAMPLES, SEED = 2000, 0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("calls", type=Path)
    arguments.add_argument("--negative", nargs="+", default=["benign"], help="what counts as no malignancy")
    arguments.add_argument("--model", default="model", help="the reader that is the model")
    options = arguments.parse_args()
    print(report(*read(options.calls), options.negative, options.model))


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cases (index case; truth, patient) and their calls, one column a reader, rows aligned.

    Raises:
        Problem: the file is missing or lacks a column, a cell is empty, a case has two truths or patients, or a reader
            did not call every case exactly once.
    """
    if not path.is_file():
        raise Problem(f"{path} is missing; docs/clinical-evaluation.md shows what it holds")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    absent = [name for name in COLUMNS if name not in table]
    if absent:
        raise Problem(f"{path} has no column {', '.join(absent)}; it needs {', '.join(COLUMNS)}")
    table = table[COLUMNS].apply(lambda column: column.str.strip())
    empty = table[(table == "").any(axis=1)]
    if len(table) == 0 or len(empty):
        where = f"an empty cell in line {empty.index[0] + 2}" if len(empty) else "no calls"
        raise Problem(f"{path} has {where}; every call needs {', '.join(COLUMNS)}")
    for name in ("truth", "patient"):
        several = table.groupby("case")[name].nunique()
        if (several > 1).any():
            raise Problem(f"{path}: case {several.idxmax()} has more than one {name}")
    counts = pd.crosstab(table["case"], table["reader"])
    if (counts != 1).any(axis=None):
        case, reader = counts.stack().ne(1).idxmax()
        raise Problem(f"{path}: reader {reader} has {counts.loc[case, reader]} calls of case {case}; it must be one")
    cases = table.groupby("case")[["truth", "patient"]].first()
    return cases, table.pivot(index="case", columns="reader", values="call").loc[cases.index]


def report(cases: pd.DataFrame, calls: pd.DataFrame, negative: Sequence[str], model: str) -> str:
    """The study's tables as text.

    Raises:
        Problem: there is no such model, or the cases are not of both kinds.
    """
    if model not in calls:
        raise Problem(f"no reader is called {model}; name the model with --model. Readers: {', '.join(calls)}")
    positive = ~cases["truth"].isin(negative).to_numpy()
    if positive.all() or not positive.any():
        raise Problem(
            f"the truths {', '.join(sorted(set(cases['truth'])))} are not of both kinds; --negative names one"
        )
    people = [name for name in calls if name != model]
    called = {name: ~calls[name].isin(negative).to_numpy() for name in calls}
    weights = metrics.group_weights(positive, cases["patient"].to_numpy(), RESAMPLES, SEED)

    lines = [
        f"{len(cases)} cases of {cases['patient'].nunique()} patients, {positive.sum()} of them malignant; "
        f"{len(people)} readers and {model}",
        "95 % intervals: bootstrap over patients, then Wilson's, which takes cases as independent",
        "",
        f"{'':16}{'sensitivity':44}specificity",
    ]
    for name in (model, *people):
        parts = [_proportion(called[name] == positive, kind, weights) for kind in (positive, ~positive)]
        lines.append(f"{name:16}{parts[0]:44}{parts[1]}")
    lines += ["", f"{model} less each reader, bootstrap over patients"]
    for name in people:
        ours, theirs = (called[each] == positive for each in (model, name))
        for what, kind in (("sensitivity", positive), ("specificity", ~positive)):
            gained = metrics.estimate(metrics.mean(ours.astype(float) - theirs, weights * kind))
            said = compare.sentence(metrics.mcnemar(ours[kind], theirs[kind]), model, name)
            lines.append(f"  {name}, {what}: {gained}. {said}")
    lines += ["", "agreement beyond chance (kappa), bootstrap over patients"]
    for name in people:
        lines.append(f"  {model} and {name}, Cohen: {_kappas(calls[[model, name]], weights, cohen)}")
    if len(people) > 1:
        lines.append(f"  the {len(people)} readers, Fleiss: {_kappas(calls[people], weights, fleiss)}")
    return "\n".join(lines)


def cohen(calls: np.ndarray, weights: np.ndarray) -> float:
    """Cohen's kappa (1960) of calls [N, 2], numbers from 0, each case counting `weights` [N] times; NaN for one class.

    Chance agreement is that of two readers who keep how often each uses each class.
    """
    n, classes = weights.sum(), int(calls.max()) + 1
    shares = [np.bincount(column, weights, classes) / n for column in calls.T]
    return _beyond_chance(float(weights @ (calls[:, 0] == calls[:, 1]) / n), float(shares[0] @ shares[1]))


def fleiss(calls: np.ndarray, weights: np.ndarray) -> float:
    """Fleiss's kappa (1971) of calls [N, R] of R readers, as `cohen`; chance is by how often all use each class."""
    classes, readers = int(calls.max()) + 1, calls.shape[1]
    counts = np.stack([(calls == c).sum(1) for c in range(classes)], axis=1)  # [N, classes]
    agree = ((counts**2).sum(1) - readers) / (readers * (readers - 1))
    share = weights @ counts / (weights.sum() * readers)
    return _beyond_chance(float(weights @ agree / weights.sum()), float(share @ share))


def _beyond_chance(observed: float, chance: float) -> float:
    return float("nan") if chance >= 1 else (observed - chance) / (1 - chance)


def _kappas(calls: pd.DataFrame, weights: np.ndarray, kappa: Callable[[np.ndarray, np.ndarray], float]) -> str:
    """A kappa and its interval; resamples in which all calls are one class say nothing of it and are left out."""
    codes = np.unique(calls.to_numpy(str), return_inverse=True)[1].reshape(calls.shape)
    values = np.array([kappa(codes, drawn) for drawn in weights])
    return "none: all calls are one class" if np.isnan(values[0]) else str(metrics.estimate(values[~np.isnan(values)]))


def _proportion(right: np.ndarray, kind: np.ndarray, weights: np.ndarray) -> str:
    by_patient = metrics.estimate(metrics.mean(right, weights * kind))
    by_case = metrics.wilson(int(right[kind].sum()), int(kind.sum()))
    return f"{by_patient} [{by_case.low:.3f}, {by_case.high:.3f}]"


if __name__ == "__main__":
    stage.guard(main)
