"""Measures the model files on the test split: what is measured here is what will be served.

Reads:  models/leukdetect.onnx, models/leukdetect.int8.onnx, data/prepared/, data/source.json, reports/history/,
        reports/cross_validation.json (of pipeline.cross_validate; left out if it is of another recipe or other images)
Writes: reports/metrics.json, reports/predictions.csv, reports/plots/ (for `dvc plots`), reports/figures/,
        reports/model_card.md, reports/datasheet.md, reports/datasheet.html, reports/report.html
Run:    python -m pipeline.evaluate
"""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import params, stage
from pipeline.data import prepared, smears
from pipeline.data.source import read_source
from pipeline.evaluation import baselines, explanations, learning_curve, metrics, schema, sections, shortcuts, slices
from pipeline.evaluation.answers import answer, sample
from pipeline.evaluation.classification import agreement, headline, hits, per_class, wilson
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8, OnnxModel
from pipeline.reporting import datasheet, html_page, model_card, tables
from pipeline.reporting.figures import draw
from pipeline.stage import Problem

CROSS_VALIDATION = Path("reports/cross_validation.json")
METRICS = Path("reports/metrics.json")
PREDICTIONS = Path("reports/predictions.csv")
PLOTS = Path("reports/plots")
FIGURES = Path("reports/figures")
MODEL_CARD = Path("reports/model_card.md")
DATASHEET = Path("reports/datasheet.md")
DATASHEET_PAGE = Path("reports/datasheet.html")
REPORT = Path("reports/report.html")


def main() -> None:
    recipe = params.load()
    fp32, int8 = open_model(FP32, recipe), open_model(INT8, recipe)
    images, split = prepared.read()
    test, train = split[split["split"] == "test"], split[split["split"] == "train"]
    check(test, images, fp32, recipe)
    history = tables.history()
    source = read_source()

    corner, n, seed = recipe.evaluate.corner, recipe.evaluate.bootstrap, recipe.seed
    held_out = sample(images[test.index], test["label"].to_numpy(), test["group"].to_numpy(), n, seed)
    pixels, labels, weights = held_out.pixels, held_out.labels, held_out.weights
    answers, answers_int8 = (answer(model, pixels, held_out.quality) for model in (fp32, int8))
    seen = train["label"].to_numpy()
    by_colour = baselines.colour_only((images[i] for i in train.index), seen, pixels, seed)
    by_corner = baselines.corner_only((images[i] for i in train.index), seen, pixels, corner, seed)

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
        | {
            "per_class": per_class(labels, answers.predicted, keys, weights),
            "wilson": wilson(labels, malignant, answers, keys),
        },
        "int8": headline(labels, malignant, answers_int8, weights),
        "int8_vs_fp32": {
            "balanced_accuracy_drop": metrics.paired_bootstrap(
                labels, answers.predicted, answers_int8.predicted, weights
            ),
            **agreement(answers, answers_int8, labels, weights),
        },
        "colour_only": hits(labels, by_colour, len(keys), weights),
        "mcnemar_over_colour": metrics.mcnemar(answers.predicted == labels, by_colour == labels),
        "margin_over_colour": metrics.paired_bootstrap(labels, answers.predicted, by_colour, weights),
        "audit": {"corner_only": hits(labels, by_corner, len(keys), weights)}
        | shortcuts.measure(lambda changed: predicted_by(fp32, changed), held_out, answers.predicted, corner),
    }
    measured |= sections.measure(fp32, int8, held_out, {"fp32": answers, "int8": answers_int8}, recipe)
    measured |= read_cross_validation(recipe)
    cells = smears.cell_masks(test["path"], images.shape[1], seed) if source["source"] == "demo" else None
    measured["explanations"] = explanations.measure(fp32, held_out, answers, seed, cells)
    report = plain(measured)
    schema.check(report)

    stage.write_json(METRICS, report)
    with stage.writing(PREDICTIONS) as path:
        tables.predictions(test, answers, keys).to_csv(path, index=False, float_format="%.6f")
    by_slice = slices.table(held_out, answers.predicted)
    with stage.writing(PLOTS) as folder:
        folder.mkdir()
        for name, table in tables.plots(labels, malignant, answers, history, by_slice, keys).items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6f")
    with stage.writing(FIGURES) as folder:
        folder.mkdir()
        draw.write(folder, fp32.contract, held_out, answers, measured, history, cells)
    with stage.writing(MODEL_CARD) as path:
        patients = split.loc[split["patient"] != "", "patient"].nunique()
        card = model_card.render(report, fp32.contract, source, patients, by_slice)
        path.write_text(card)
    sheet = datasheet.render(source, split, fp32.contract.decode.size)
    with stage.writing(DATASHEET) as path:
        path.write_text(sheet)
    with stage.writing(DATASHEET_PAGE) as path:
        path.write_text(html_page.render_datasheet(sheet))
    with stage.writing(REPORT) as path:
        path.write_text(html_page.render(card, sheet, FIGURES, pictures=bool(source.get("thumbnails"))))
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
            f"{prepared.PREPARED}/images.npy holds images of {images.shape[1]} px, but {model.path} takes {size} px; "
            "`dvc repro export` brings them together"
        )
    absent = [c.key for c in recipe.classes if c.key not in set(test["class"])]
    if absent:
        raise Problem(
            f"the test split has no image of {', '.join(absent)}, so nothing can be said of it. Add data, or change "
            "seed or prepare.fractions in params.yaml; then `dvc repro`"
        )


def read_cross_validation(recipe: params.Params) -> dict[str, Any]:
    """The section on grouped folds, if they were trained for this recipe on these images."""
    found = json.loads(CROSS_VALIDATION.read_text()) if CROSS_VALIDATION.is_file() else {"key": None}
    return {"cross_validation": found} if found["key"] == learning_curve.key(recipe, prepared.digest()) else {}


def predicted_by(model: OnnxModel, pixels: np.ndarray) -> np.ndarray:
    """Classes [N] of uint8 [N, S, S, 3]."""
    return np.asarray(model.predict(pixels)["probabilities"].argmax(1))


def plain(value: Any) -> Any:
    """Nested dicts for JSON: estimates as dicts, numbers rounded to 6 decimals."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return round(value, 6) + 0.0 if isinstance(value, float) else value  # + 0.0: no negative zero


if __name__ == "__main__":
    stage.run(main)
