"""A reader study's results: how often readers and the model are right, and how far they agree.

Reads:  a CSV, a row a call: case, patient, truth, reader, call. The model is a reader of its own.
        Or a folder that `python -m pipeline.calls --study` made and readers filled in.
Run:    python -m pipeline.evaluation.reader_study calls.csv [--negative benign] [--model model]

Sensitivity and specificity are of malignant against benign: every call but those of --negative counts as positive, a
referral by the model too. Kappa compares the calls as they stand.
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
MADE = "docs/clinical-evaluation.md shows such a file"
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

    Raises Problem if the file is missing or lacks a column, a cell is empty, a case has two truths or patients, or a
    reader did not call every case exactly once.
    """
    table = of_folder(path) if path.is_dir() else compare.read_columns(path, COLUMNS, MADE)
    table = table.apply(lambda column: column.str.strip())
    empty = table.index[(table == "").any(axis=1)]
    if table.empty or len(empty):
        where = f"an empty cell in line {empty[0] + 2}" if len(empty) else "no calls"
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


def of_folder(folder: Path) -> pd.DataFrame:
    """The table of COLUMNS that key.csv and each reader's form of a folder say together. Raises Problem as `read`."""
    made = "`python -m pipeline.calls --study` makes such a folder"
    key = compare.read_columns(folder / "key.csv", ["case", "patient", "truth", "model"], made)
    tables = [key.rename(columns={"model": "call"}).assign(reader="model")]
    for path in sorted(folder.glob("*.csv")):
        if path.name != "key.csv":
            form = compare.read_columns(path, ["case", "call"], made)
            if open_cases := form.loc[form["call"].str.strip() == "", "case"].tolist():
                raise Problem(f"{path}: {len(open_cases)} cases have no call, first {open_cases[0]}")
            tables.append(form.merge(key[["case", "patient", "truth"]], on="case").assign(reader=path.stem))
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def report(cases: pd.DataFrame, calls: pd.DataFrame, negative: Sequence[str], model: str) -> str:
    """The study's tables as text. Raises Problem if no reader is `model`, or the cases are not of both kinds."""
    if model not in calls:
        raise Problem(f"no reader is called {model}; name the model with --model. Readers: {', '.join(calls)}")
    positive = ~cases["truth"].isin(negative).to_numpy()
    if positive.all() or not positive.any():
        raise Problem(
            f"the truths {', '.join(sorted(set(cases['truth'])))} are not of both kinds; --negative names one"
        )
    people = [name for name in calls if name != model]
    right = {name: ~calls[name].isin(negative).to_numpy() == positive for name in calls}
    kinds = {"sensitivity": positive, "specificity": ~positive}
    weights = metrics.group_weights(positive, cases["patient"].to_numpy(), RESAMPLES, SEED)

    lines = [
        f"{len(cases)} cases of {cases['patient'].nunique()} patients, {positive.sum()} of them malignant; "
        f"{len(people)} readers and {model}",
        "95 % intervals: bootstrap over patients, then Wilson's, which takes cases as independent",
        "",
        f"{'':16}{'sensitivity':44}specificity",
    ]
    for name in (model, *people):
        by_patient = [metrics.estimate_mean(right[name], weights * kind) for kind in kinds.values()]
        by_case = [metrics.wilson(int(right[name][kind].sum()), int(kind.sum())) for kind in kinds.values()]
        parts = [f"{p} [{c.low:.3f}, {c.high:.3f}]" for p, c in zip(by_patient, by_case, strict=True)]
        lines.append(f"{name:16}{parts[0]:44}{parts[1]}")
    lines += ["", f"{model} less each reader, bootstrap over patients"]
    for name in people:
        for what, kind in kinds.items():
            gained = metrics.estimate_mean(right[model].astype(float) - right[name], weights * kind)
            test = metrics.mcnemar(right[model][kind], right[name][kind])
            lines.append(f"  {name}, {what}: {gained}. {compare.sentence(test, model, name)}")
    lines += ["", "agreement beyond chance (kappa), bootstrap over patients"]
    for name in people:
        lines.append(f"  {model} and {name}, Cohen: {_kappas(calls[[model, name]], weights, cohen)}")
    if len(people) > 1:
        lines.append(f"  the {len(people)} readers, Fleiss: {_kappas(calls[people], weights, fleiss)}")
    return "\n".join(lines)


def cohen(calls: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of calls [N, 2] in each resample: [R]; NaN where all calls are one class.

    Chance agreement is that of two readers who keep how often each uses each class.
    """
    a, b = (weights @ (column[:, None] == np.unique(calls)) for column in calls.T)
    return _beyond_chance(weights @ (calls[:, 0] == calls[:, 1]), (a * b).sum(-1) / weights.sum(-1), weights)


def fleiss(calls: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fleiss's kappa (1971) of calls [N, readers], as `cohen`; chance is by how often all use each class."""
    readers = calls.shape[1]
    counts = (calls[..., None] == np.unique(calls)).sum(1)  # [N, classes]
    agree = ((counts**2).sum(1) - readers) / (readers * (readers - 1))
    return _beyond_chance(weights @ agree, ((weights @ counts / readers) ** 2).sum(-1) / weights.sum(-1), weights)


def _beyond_chance(agreed: np.ndarray, by_chance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kappa from numbers of cases: that agreed, and that would by chance (all, where all calls are one class)."""
    left = weights.sum(-1) - by_chance
    return np.divide(agreed - by_chance, left, out=np.full(left.shape, np.nan), where=left > 0)


def _kappas(calls: pd.DataFrame, weights: np.ndarray, kappa: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> str:
    """A kappa and its interval, without the resamples in which it is NaN."""
    values = kappa(calls.to_numpy(str), weights)
    return "none: all calls are one class" if np.isnan(values[0]) else str(metrics.estimate(values[~np.isnan(values)]))


if __name__ == "__main__":
    stage.guard(main)
