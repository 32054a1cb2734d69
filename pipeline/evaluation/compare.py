"""Compares two models that answered for the same images: which is better, and could it be chance?

Reads:  two predictions.csv (of `python -m pipeline.evaluate`; columns image, class, group, predicted)
Run:    python -m pipeline.evaluation.compare A.csv B.csv
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import stage
from pipeline.data import table
from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import McNemar
from pipeline.stage import Problem

RESAMPLES, SEED = 10_000, 0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("a", type=Path)
    arguments.add_argument("b", type=Path)
    options = arguments.parse_args()
    print(report(join(read(options.a), read(options.b))))


def read_columns(path: Path, columns: list[str], made: str) -> pd.DataFrame:
    """Columns of a CSV, as text. Raises Problem if the file or a column is missing; `made` says where it comes from."""
    if not path.is_file():
        raise Problem(f"{path} is missing; {made}")
    hint = f"it needs {', '.join(columns)}; {made}"
    return pd.DataFrame([row.cells for row in table.rows(path, columns, hint)], columns=columns, dtype=str)


def read(path: Path) -> pd.DataFrame:
    """One model's predictions, by image. Raises Problem as `read_columns`."""
    made = "`dvc repro evaluate` writes reports/predictions.csv"
    return read_columns(path, ["image", "class", "group", "predicted"], made).set_index("image")


def join(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Both models' predictions of the images that both answered for.

    Raises Problem if there is no such image, or the files disagree on the class of one.
    """
    both = a.join(b[["class", "predicted"]], rsuffix="_b", how="inner")
    if both.empty:
        raise Problem("the two files have no image in common: nothing can be compared")
    if len(differ := both[both["class"] != both["class_b"]]):
        raise Problem(
            f"the files disagree on the class of {len(differ)} images, first {differ.index[0]}: "
            "they were made from other data"
        )
    both.attrs["left_out"] = len(a) + len(b) - 2 * len(both)
    return both


def report(both: pd.DataFrame) -> str:
    """Both balanced accuracies, their difference and McNemar's test, as text."""
    labels, a, b, groups = (both[name].to_numpy(str) for name in ("class", "predicted", "predicted_b", "group"))
    weights = metrics.group_weights(labels, groups, RESAMPLES, SEED)
    values = [metrics.estimate(metrics.balanced_accuracy(labels, predicted, weights)) for predicted in (a, b)]
    difference = metrics.paired_bootstrap(labels, a, b, weights)
    lines = [f"{len(both)} images in {len(np.unique(groups))} groups, {both.attrs['left_out']} rows left out", ""]
    for name, value in (*zip("AB", values, strict=True), ("A − B", difference)):
        lines.append(f"balanced accuracy of {name:5}  {value.value:7.4f}  [{value.low:.4f}, {value.high:.4f}]")
    return "\n".join([*lines, "", sentence(metrics.mcnemar(a == labels, b == labels), "A", "B")])


def sentence(test: McNemar, a: str, b: str) -> str:
    """McNemar's test in words, with its assumption."""
    p = f"p = {test.p:.3g}" if test.p >= 1e-6 else "p < 0.000001"  # reports/metrics.json rounds it to 0
    counts = f"Only {a} is right on {test.only_a} images, only {b} on {test.only_b}"
    return f"{counts}: exact McNemar {p}, images taken as independent."


if __name__ == "__main__":
    stage.guard(main)
