"""Tables of what a model file said: each image's row, and the data of figures for `dvc plots`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from pipeline import stage
from pipeline.data import prepared
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers, Sample

HISTORY = Path("reports/history")


def predictions(rows: pd.DataFrame, groups: np.ndarray, fp32: Answers, int8: Answers, keys: list[str]) -> pd.DataFrame:
    """One row a held-out image: what FP32 said of it, why it was referred if it was, and INT8's."""
    columns: dict[str, Any] = {"image": prepared.images(rows).to_numpy(), "class": rows["class"].to_numpy()}
    columns["group"] = groups
    for prefix, said in {"": fp32, "int8_": int8}.items():
        mine = {
            "predicted": np.array(keys)[said.predicted],
            "confidence": said.confidence,
            "p_malignant": said.p_malignant,
            "unlikeness": said.unlikeness,
            "malignant": said.malignant,
            "decision": np.where(said.reported, "report", "refer"),
            "reasons": [" ".join(sorted(each)) for each in said.reasons],
            **{f"probability_{key}": said.probabilities[:, i] for i, key in enumerate(keys)},
        }
        columns |= {prefix + name: values for name, values in mine.items()}
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def csv(table: pd.DataFrame) -> str:
    """Text with six decimals."""
    return str(table.to_csv(index=False, float_format="%.6f"))


def plots(
    test: Sample, malignant: np.ndarray, answers: Answers, keys: list[str], **more: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """The tables that `dvc plots` draws, by name, and those that are there already. `malignant`: bool [C]."""
    names, scores = np.array(keys), answers.p_malignant
    if scores is None:  # P(malignant) means nothing: every class against the rest, joined
        scores, positive = answers.probabilities.ravel(), np.eye(len(keys), dtype=bool)[test.labels].ravel()
    else:
        positive = malignant[test.labels]
    fpr, tpr, _ = roc_curve(positive, scores)
    return {
        "confusion": pd.DataFrame({"actual": names[test.labels], "predicted": names[answers.predicted]}),
        "roc": pd.DataFrame({"false_positive_rate": fpr, "true_positive_rate": tpr}),
        "reliability": reliability_table(answers.confidence, answers.predicted == test.labels),
    } | more


def reliability_table(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Mean confidence, accuracy and number of images in each bin that `metrics.ece` sums over."""
    frame = pd.DataFrame({"bin": metrics.confidence_bins(confidence), "confidence": confidence, "correct": correct})
    return frame.groupby("bin", as_index=False).agg(
        confidence=("confidence", "mean"), accuracy=("correct", "mean"), images=("correct", "size")
    )


def history() -> pd.DataFrame:
    """The curves of both phases of training, one after the other; `step` counts epochs through both.

    Raises Problem: a phase has left none.
    """
    phases = []
    for phase in ("train_head", "fine_tune"):
        path = stage.require(HISTORY / f"{phase}.csv", phase)
        phases.append(pd.read_csv(path).assign(phase=phase))
    frame = pd.concat([phase for phase in phases if len(phase)], ignore_index=True)  # none, where a phase has no epochs
    frame["step"] = np.arange(1, len(frame) + 1)
    return frame[["step", "phase", "epoch", "loss", "val_loss", "accuracy", "val_accuracy"]]
