"""All figures of a run."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from leukdetect.contract import Contract
from pipeline.evaluation.answers import Answers, Sample, maps
from pipeline.evaluation.report import Measured, Report
from pipeline.reporting.figures import abstention, calibration, classification, explanations, learning_curve
from pipeline.reporting.figures.style import STYLE, save

PICTURES = ("mistakes", "overlays")  # of the data: as vectors they would hold the same pixels


def write(
    folder: Path,
    contract: Contract,
    test: Sample,
    answers: Answers,
    measured: Measured,
    history: pd.DataFrame,
    cells: np.ndarray | None,
) -> None:
    """Writes figures of the FP32 file's answers into a folder; those of the maps' tests are `write_explanations`'s.

    `cells`: bool [N, S, S]; None where they are not known.
    """
    names, labels, split = [c.label for c in contract.classes], test.labels, measured.split
    correct, fp32, folds = answers.predicted == labels, measured.fp32, measured.cross_validation
    on_train = f"Training split, n = {split.train}; validation split, n = {split.val}"
    if measured.out_of_fold:
        on_train = f"The model that serves: it learnt from all {split.train} images"
    with matplotlib.rc_context(STYLE):
        figures = {
            "confusion_matrix": classification.confusion_matrix(labels, answers.predicted, names),
            "roc": classification.roc(answers, labels, contract, fp32),
            "reliability": calibration.reliability(answers.confidence, correct, fp32.ece),
            "training_curves": classification.training_curves(history),
            "mistakes": classification.mistakes(test.pixels, labels, answers.predicted, answers.confidence, names),
            "calibration": calibration.temperature(answers.probabilities, labels, measured.calibration),
            "abstention": abstention.figure(answers.confidence, correct, measured.abstention.fp32),
            "overlays": explanations.overlays(maps(answers, test.pixels), labels, names, cells),
        } | ({"learning_curve": learning_curve.figure(folds)} if folds else {})
        samples = {"training_curves": on_train} | ({"learning_curve": learning_curve.sample(folds)} if folds else {})
        for name, figure in figures.items():
            said, vector = samples.get(name, _sample(measured)), name not in PICTURES
            save(figure, folder / f"{name}.png", said, synthetic=measured.synthetic, vector=vector)


def write_explanations(folder: Path, report: Report) -> None:
    """Writes the PNG and the SVG of the maps' tests."""
    with matplotlib.rc_context(STYLE):
        figure = explanations.tests(report.explanations)
        save(figure, folder / "explanations.png", _sample(report, first=True), synthetic=report.synthetic)


def _sample(measured: Measured, *, first: bool = False) -> str:
    """What a figure is of; `first`: of the first fold's model alone, where there are folds."""
    size, found = f"n = {measured.split.test} images in {measured.split.test_groups} groups", measured.out_of_fold
    if found is None:
        return f"Test split, {size}"
    return f"The first of {found.folds} folds, the images that it held out" if first else f"Out of fold, {size}"
