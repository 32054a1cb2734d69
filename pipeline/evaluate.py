"""Measures the model files on the test split: what is measured here is what will be served.

Reads:  models/leukdetect.onnx, models/leukdetect.int8.onnx, data/prepared/, data/source.json, reports/history/
Writes: reports/metrics.json, reports/predictions.csv, reports/plots/ (for `dvc plots`), reports/figures/,
        reports/model_card.md
Run:    python -m pipeline.evaluate
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from pipeline import baselines, metrics, model_card, onnx_model, params, plots, prepare, stage, trust
from pipeline.metrics import Estimate
from pipeline.onnx_model import FP32, INT8, OnnxModel
from pipeline.stage import Problem

SOURCE = Path("data/source.json")
HISTORY = Path("reports/history")
METRICS = Path("reports/metrics.json")
PREDICTIONS = Path("reports/predictions.csv")
PLOTS = Path("reports/plots")
FIGURES = Path("reports/figures")
MODEL_CARD = Path("reports/model_card.md")


@dataclass(frozen=True)
class Answers:
    """What a model file says of N images, read with its own thresholds."""

    probabilities: np.ndarray  # float64 [N, C]
    predicted: np.ndarray  # int [N]
    confidence: np.ndarray  # [N], the highest probability
    p_malignant: np.ndarray  # [N]
    malignant: np.ndarray  # bool [N], called so at the operating point
    unlikeness: np.ndarray  # [N]
    low_confidence: np.ndarray  # bool [N]
    unlike: np.ndarray  # bool [N]

    @property
    def reported(self) -> np.ndarray:
        """bool [N]: not referred."""
        return ~(self.low_confidence | self.unlike)


def main() -> None:
    recipe = params.load()
    fp32, int8 = open_model(FP32, recipe), open_model(INT8, recipe)
    images, split = prepare.read()
    test, train = split[split["split"] == "test"], split[split["split"] == "train"]
    check(test, images, fp32, recipe)
    history = plots.history_table({phase: read_history(phase) for phase in ("train_head", "fine_tune")})
    source = read_source()

    pixels, labels, groups = images[test.index], test["label"].to_numpy(), test["group"].to_numpy()
    answers, answers_int8 = answer(fp32, pixels), answer(int8, pixels)
    masked = fp32.predict(mask_corner(pixels, recipe.evaluate.corner))["probabilities"].argmax(1)
    by_colour = baselines.colour_only((images[i] for i in train.index), train["label"].to_numpy(), pixels, recipe.seed)

    n, seed = recipe.evaluate.bootstrap, recipe.seed
    weights = metrics.group_weights(labels, groups, n, seed)
    malignant = np.array([c.malignant for c in recipe.classes])
    keys = [c.key for c in recipe.classes]
    measured = {
        "split": {name: int((split["split"] == name).sum()) for name in ("train", "val", "test", "embargo")}
        | {
            "test_groups": test["group"].nunique(),
            "fewest_test_groups": int(test.groupby("class")["group"].nunique().min()),  # of a class
        },
        "synthetic": source["synthetic"],
        "fp32": headline(labels, malignant, answers, weights)
        | {"per_class": per_class(labels, answers.predicted, keys, weights)},
        "int8": headline(labels, malignant, answers_int8, weights),
        "int8_vs_fp32": {
            "balanced_accuracy_drop": metrics.paired_bootstrap(
                labels, answers.predicted, answers_int8.predicted, groups, n, seed
            ),
            **agreement(answers, answers_int8, weights),
        },
        "colour_only": hits(labels, by_colour, len(keys), weights),
        "margin_over_colour": metrics.paired_bootstrap(labels, answers.predicted, by_colour, groups, n, seed),
        "corner_masked": {
            "balanced_accuracy": metrics.estimate(metrics.balanced_accuracy(labels, masked, weights)),
            "changed": metrics.estimate(metrics.mean(masked != answers.predicted, weights)),
        },
    }
    held_out = trust.sample(images, test, recipe)
    measured |= trust.measure(fp32, int8, held_out, recipe)
    report = plain(measured)

    stage.write_json(METRICS, report)
    with stage.writing(PREDICTIONS) as path:
        prediction_table(test, answers, keys).to_csv(path, index=False, float_format="%.6f")
    write_plots(labels, malignant, answers, history, keys)
    write_figures(held_out, pixels, labels, answers, history, fp32, measured)
    with stage.writing(MODEL_CARD) as path:
        patients = split.loc[split["patient"] != "", "patient"].nunique()
        path.write_text(model_card.render(report, fp32.contract, source, patients))
    print(model_card.table(report, n))


def open_model(path: Path, recipe: params.Params) -> OnnxModel:
    """Opens a model file and checks that its classes are the recipe's, in order."""
    model = onnx_model.load(path)
    theirs, ours = [c.key for c in model.contract.classes], [c.key for c in recipe.classes]
    if theirs != ours:
        raise Problem(
            f"{path} knows the classes {theirs}, but params.yaml has {ours}; `dvc repro export` makes it anew"
        )
    return model


def check(test: pd.DataFrame, images: np.ndarray, model: OnnxModel, recipe: params.Params) -> None:
    """Raises Problem if the images do not fit the model, or the test split lacks a class."""
    size = model.contract.decode.size
    if images.shape[1:] != (size, size, 3):
        raise Problem(
            f"{prepare.PREPARED}/images.npy holds images of {images.shape[1]} px, but {model.path} takes {size} px; "
            "`dvc repro export` brings them together"
        )
    absent = [c.key for c in recipe.classes if c.key not in set(test["class"])]
    if absent:
        raise Problem(
            f"the test split has no image of {', '.join(absent)}, so nothing can be said of it. Add data, or change "
            "seed or prepare.fractions in params.yaml; then `dvc repro`"
        )


def read_history(phase: str) -> pd.DataFrame:
    path = HISTORY / f"{phase}.csv"
    if not path.is_file():
        raise Problem(f"{path} is missing; `dvc repro {phase}` makes it")
    return pd.read_csv(path)


def read_source() -> dict[str, Any]:
    if not SOURCE.is_file():
        raise Problem(f"{SOURCE} is missing; `dvc repro fetch` makes it")
    source: dict[str, Any] = json.loads(SOURCE.read_text())
    return source


def answer(model: OnnxModel, pixels: np.ndarray) -> Answers:
    """Runs uint8 [N, S, S, 3] through a model file."""
    outputs = model.predict(pixels, ("probabilities", "unlikeness"))
    thresholds = model.contract.thresholds
    probabilities = outputs["probabilities"].astype(np.float64)
    p_malignant = probabilities[:, [c.malignant for c in model.contract.classes]].sum(1)
    confidence = probabilities.max(1)
    return Answers(
        probabilities=probabilities,
        predicted=probabilities.argmax(1),
        confidence=confidence,
        p_malignant=p_malignant,
        malignant=p_malignant >= thresholds.malignant,
        unlikeness=outputs["unlikeness"],
        low_confidence=confidence < thresholds.confidence,
        unlike=outputs["unlikeness"] > 1,
    )


def mask_corner(pixels: np.ndarray, share: float) -> np.ndarray:
    """A copy of [N, S, S, 3] with the bottom-right `share` of each side painted in the image's own median colour."""
    masked = pixels.copy()
    side = round(share * pixels.shape[1])
    for image in masked:
        image[-side:, -side:] = np.median(image, axis=(0, 1))
    return masked


def hits(labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> dict[str, Estimate]:
    """The metrics that need nothing but the predicted class."""
    values = {
        "accuracy": metrics.mean(predicted == labels, weights),
        "balanced_accuracy": metrics.balanced_accuracy(labels, predicted, weights),
        "macro_f1": metrics.f1(metrics.confusion(labels, predicted, classes, weights)).mean(1),
    }
    return {name: metrics.estimate(value) for name, value in values.items()}


def headline(labels: np.ndarray, malignant: np.ndarray, answers: Answers, weights: np.ndarray) -> dict[str, Estimate]:
    """Everything that one number says of a model. `malignant`: bool [C]."""
    correct, is_malignant = answers.predicted == labels, malignant[labels]
    one_vs_rest = [metrics.auroc(p, labels == index, weights) for index, p in enumerate(answers.probabilities.T)]
    values = {
        "malignant_sensitivity": metrics.mean(answers.malignant, weights * is_malignant),
        "malignant_specificity": metrics.mean(~answers.malignant, weights * ~is_malignant),
        "malignant_auroc": metrics.auroc(answers.p_malignant, is_malignant, weights),
        "macro_auroc": np.mean(one_vs_rest, axis=0),
        "ece": metrics.ece(answers.confidence, correct, weights),
        "brier": metrics.mean(metrics.brier(answers.probabilities, labels), weights),
        "nll": metrics.mean(metrics.nll(answers.probabilities, labels), weights),
        "coverage": metrics.mean(answers.reported, weights),
        "accuracy_reported": metrics.mean(correct, weights * answers.reported),
    }
    return hits(labels, answers.predicted, len(malignant), weights) | {
        k: metrics.estimate(v) for k, v in values.items()
    }


def per_class(
    labels: np.ndarray, predicted: np.ndarray, keys: list[str], weights: np.ndarray
) -> dict[str, dict[str, Estimate]]:
    matrix = metrics.confusion(labels, predicted, len(keys), weights)
    values = {"precision": metrics.precision(matrix), "recall": metrics.recall(matrix), "f1": metrics.f1(matrix)}
    return {
        key: {name: metrics.estimate(value[:, index]) for name, value in values.items()}
        for index, key in enumerate(keys)
    }


def agreement(fp32: Answers, int8: Answers, weights: np.ndarray) -> dict[str, Estimate | float]:
    """How far INT8's answers are from FP32's; differences are of a probability."""
    difference = np.abs(fp32.probabilities - int8.probabilities)
    return {
        "equal_argmax": metrics.estimate(metrics.mean(fp32.predicted == int8.predicted, weights)),
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
    }


def plain(value: Any) -> Any:
    """Nested dicts for JSON: estimates as dicts, numbers rounded to 6 decimals."""
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return round(value, 6) + 0.0 if isinstance(value, float) else value  # + 0.0: no negative zero


def prediction_table(test: pd.DataFrame, answers: Answers, keys: list[str]) -> pd.DataFrame:
    """One row an image of the test split: what was said of it, and why it was referred if it was."""
    columns = {
        "path": test["path"].to_numpy(),
        "class": test["class"].to_numpy(),
        "group": test["group"].to_numpy(),
        "predicted": np.array(keys)[answers.predicted],
        "confidence": answers.confidence,
        "p_malignant": answers.p_malignant,
        "unlikeness": answers.unlikeness,
        "malignant": answers.malignant,
        "low_confidence": answers.low_confidence,
        "unlike": answers.unlike,
        "decision": np.where(answers.reported, "report", "refer"),
    }
    return pd.DataFrame(columns | {f"probability_{key}": answers.probabilities[:, i] for i, key in enumerate(keys)})


def write_plots(
    labels: np.ndarray, malignant: np.ndarray, answers: Answers, history: pd.DataFrame, keys: list[str]
) -> None:
    names = np.array(keys)
    tables = {
        "confusion": pd.DataFrame({"actual": names[labels], "predicted": names[answers.predicted]}),
        "roc": plots.roc_table(answers.p_malignant, malignant[labels]),
        "reliability": plots.reliability_table(answers.confidence, answers.predicted == labels),
        "history": history,
    }
    with stage.writing(PLOTS) as folder:
        folder.mkdir()
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6f")


def write_figures(
    held_out: trust.Sample,
    pixels: np.ndarray,
    labels: np.ndarray,
    answers: Answers,
    history: pd.DataFrame,
    model: OnnxModel,
    measured: dict[str, Any],
) -> None:
    names = [c.label for c in model.contract.classes]
    malignant = np.array([c.malignant for c in model.contract.classes])
    counts = metrics.confusion(labels, answers.predicted, len(names), np.ones((1, len(labels))))[0]
    correct, fp32, split = answers.predicted == labels, measured["fp32"], measured["split"]
    threshold = model.contract.thresholds.malignant
    on_test = f"Test split, n = {split['test']} images in {split['test_groups']} groups"
    on_train = f"Training split, n = {split['train']}; validation split, n = {split['val']}"
    with matplotlib.rc_context(plots.STYLE), stage.writing(FIGURES) as folder:
        folder.mkdir()
        figures = {
            "confusion_matrix": plots.confusion_matrix(counts, names),
            "roc": plots.roc(answers.probabilities, labels, names, malignant, threshold, fp32["malignant_auroc"]),
            "reliability": plots.reliability(answers.confidence, correct, fp32["ece"]),
            "training_curves": plots.training_curves(history),
            "mistakes": plots.mistakes(pixels, labels, answers.predicted, answers.confidence, names),
            **trust.figures(model, held_out, measured),
        }
        for name, figure in figures.items():
            sample = on_train if name == "training_curves" else on_test
            plots.save(figure, folder / f"{name}.png", sample, synthetic=measured["synthetic"])


if __name__ == "__main__":
    stage.run(main)
