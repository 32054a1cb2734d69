"""All figures of a run."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from leukdetect.contract import Contract
from pipeline.evaluation.answers import Answers, Sample, maps
from pipeline.evaluation.report import Report
from pipeline.reporting.figures import abstention, calibration, classification, explanations, learning_curve
from pipeline.reporting.figures.style import STYLE, save


def write(
    folder: Path,
    contract: Contract,
    test: Sample,
    answers: Answers,
    measured: Report,
    history: pd.DataFrame,
    cells: np.ndarray | None,
) -> None:
    """Writes PNGs into a folder.

    Args:
        contract, answers: of the FP32 file.
        measured: what reports/metrics.json will hold.
        history: of `tables.history`.
        cells: bool [N, S, S], where the cell is; None where that is not known.
    """
    names, labels, split = [c.label for c in contract.classes], test.labels, measured.split
    correct, fp32, folds = answers.predicted == labels, measured.fp32, measured.cross_validation
    on_test = f"Test split, n = {split.test} images in {split.test_groups} groups"
    on_train = f"Training split, n = {split.train}; validation split, n = {split.val}"
    with matplotlib.rc_context(STYLE):
        figures = {
            "confusion_matrix": classification.confusion_matrix(labels, answers.predicted, names),
            "roc": classification.roc(answers, labels, contract, fp32.malignant_auroc),
            "reliability": classification.reliability(answers.confidence, correct, fp32.ece),
            "training_curves": classification.training_curves(history),
            "mistakes": classification.mistakes(test.pixels, labels, answers.predicted, answers.confidence, names),
            "calibration": calibration.figure(answers.probabilities, labels, measured.calibration),
            "abstention": abstention.figure(answers.confidence, correct, measured.abstention.fp32),
            "explanations": explanations.tests(measured.explanations),
            "overlays": explanations.overlays(maps(answers, test.pixels), labels, names, cells),
        } | ({"learning_curve": learning_curve.figure(folds)} if folds else {})
        samples = {"training_curves": on_train} | ({"learning_curve": learning_curve.sample(folds)} if folds else {})
        for name, figure in figures.items():
            save(figure, folder / f"{name}.png", samples.get(name, on_test), synthetic=measured.synthetic)
