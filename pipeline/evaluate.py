"""Measures the model files on the test split, or their recipe out of fold; what is measured is what will be served.

Reads:  models/leukdetect.onnx, models/leukdetect.int8.onnx, data/prepared/, data/source.json, reports/history/,
        reports/cross_validation.json (of pipeline.cross_validate; left out if it is of another recipe or other images)
Writes: reports/metrics.json, reports/headline.json (for `dvc metrics`), reports/predictions.csv, reports/plots/ (the
        figures' numbers), reports/figures/ (for `dvc plots`), reports/model_card.md, reports/datasheet.md,
        reports/datasheet.html, reports/report.html
Run:    python -m pipeline.evaluate
"""

from functools import partial
from pathlib import Path

import numpy as np

from pipeline import params, stage
from pipeline.ahead import beside
from pipeline.data import prepared, smears
from pipeline.data.source import read_source
from pipeline.evaluation import (
    abstention,
    baselines,
    calibration,
    classification,
    held_out,
    learning_curve,
    limits,
    metrics,
    out_of_distribution,
    patients,
    prediction_sets,
    shortcuts,
    slices,
)
from pipeline.evaluation.report import HEADLINE, METRICS, Measured, Report, split_sizes
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.reporting import datasheet, html_page, model_card, tables
from pipeline.reporting.figures import draw

REPORTS = Path("reports")
FIGURES = REPORTS / "figures"


def main() -> None:
    recipe = params.load()
    keys, malignant = [c.key for c in recipe.classes], np.array([c.malignant for c in recipe.classes])
    seed, options = recipe.seed, recipe.evaluate
    fp32, int8 = (onnx_model.load(path, keys) for path in (FP32, INT8))
    images, split = prepared.read()
    source, history = read_source(), tables.history()

    held = held_out.measure(recipe, fp32, int8, images, split)
    test, rows, ours, ours_int8 = held.test, held.rows, held.fp32.answers, held.int8.answers
    cells = smears.cell_masks(rows["path"], images.shape[1], seed) if source["source"] == "demo" else None
    both = (fp32, held.fp32), (int8, held.int8)
    with beside() as asking, stage.writing(FIGURES) as folder:  # asking the models takes longer than all else
        print(f"{len(rows)} held-out images: tests of the maps, foreign images, then the shortcut audit", flush=True)
        explained = asking.submit(held_out.explained, held, seed, cells)
        foreign = out_of_distribution.kinds(test.pixels, seed, options.other_laboratory)
        abstains = [asking.submit(abstention.measure, file, of.answers, test, foreign) for file, of in both]
        by_slice = slices.table(test, ours.predicted)
        audit = {
            name: asking.submit(shortcuts.ask, name, held.fp32.predict, alter, test, ours.predicted)
            for name, alter in shortcuts.experiments(test, options.corner).items()
        }
        by_colour = held.baseline(baselines.colours)
        by_corner = held.baseline(partial(baselines.corners, share=options.corner))
        classes, error = fp32.contract.classes, recipe.calibrate.set_error
        sets = [prediction_sets.coverage(of.answers, test, of.set_thresholds, classes, error) for _, of in both]
        measured = Measured(
            split=split_sizes(split),
            out_of_fold=held.out_of_fold,
            synthetic=source["synthetic"],
            fp32=classification.whole(ours, test, malignant, keys),
            int8=classification.whole(ours_int8, test, malignant, keys),
            int8_vs_fp32=classification.agreement(ours, ours_int8, test),
            colour_only=classification.hits(by_colour, test.labels, len(keys), test.weights),
            margin_over_colour=metrics.paired_bootstrap(test.labels, ours.predicted, by_colour, test.weights),
            mcnemar_over_colour=metrics.mcnemar(ours.predicted == test.labels, by_colour == test.labels),
            calibration=calibration.calibration(ours, held.fp32.temperature, test, fp32.contract.temperature),
            operating_point=calibration.operating_point(ours, test, malignant, fp32.contract, options.prevalence),
            abstention=metrics.Both(fp32=abstains[0].result(), int8=abstains[1].result()),
            prediction_sets=metrics.Both(fp32=sets[0], int8=sets[1]),
            patients=patients.both(ours, ours_int8, test, fp32.contract) if options.label_of == "patient" else None,
            limits_at_ends=limits.at_ends(fp32.contract, recipe.calibrate),
            cross_validation=learning_curve.read(learning_curve.key(recipe, prepared.digest())),
        )
        folder.mkdir()
        draw.write(folder, fp32.contract, test, ours, measured, history, cells)
        corner_only = classification.hits(by_corner, test.labels, len(keys), test.weights)
        changed = shortcuts.Shortcuts(corner_only=corner_only, **{name: each.result() for name, each in audit.items()})
        report = Report(**dict(measured), audit=changed, explanations=explained.result())
        draw.write_explanations(folder, report)

    stage.write_json(METRICS, report.plain())
    stage.write_json(HEADLINE, report.headline())
    with stage.writing(REPORTS / "plots") as folder:
        folder.mkdir()
        for name, table in tables.plots(test, malignant, ours, keys, history=history, slices=by_slice).items():
            (folder / f"{name}.csv").write_text(tables.csv(table))
    card = model_card.render(report, fp32.contract, recipe.wording, source, split, by_slice)
    sheet = datasheet.render(source, split, fp32.contract.decode.size, len(recipe.estimate.folds))
    for name, text in {
        "predictions.csv": tables.csv(tables.predictions(rows, test.groups, ours, ours_int8, keys)),
        "model_card.md": card,
        "datasheet.md": sheet,
        "datasheet.html": html_page.render(sheet),
        "report.html": html_page.render(card, sheet, FIGURES, pictures=bool(source.get("thumbnails"))),
    }.items():
        with stage.writing(REPORTS / name) as path:
            path.write_text(text)
    print(model_card.table(report, options.bootstrap))


if __name__ == "__main__":
    stage.run(main)
