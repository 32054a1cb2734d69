"""How good a model file is, drawn; within `style.STYLE`."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from leukdetect.contract import Contract
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers
from pipeline.evaluation.classification import WholeHeadline
from pipeline.reporting.figures.style import BLUE, FAINT, INK, ORANGE, RED, blank, legend, looks

MOST_MISTAKES = 12


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> Figure:
    """Counts of images [N], rows actual, in cells that are shaded by their share of the row."""
    counts = metrics.confusion(labels, predicted, len(names), np.ones((1, len(labels))))[0]
    many = len(names) > 8
    side = (0.6 if many else 0.95) * len(names)  # inches
    large, small, up, down = (9.5, 6.5, 4, -6) if many else (14, 8.5, 5, -11)  # points
    figure = blank(side + 3.0, side + 1.4, "Confusion matrix")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if many and not count:
            continue  # nearly all are 0: the eye finds the others
        ink = "white" if shares[row, column] > 0.55 else INK
        look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "color": ink}
        axes.annotate(f"{count:.0f}", (column, row), xytext=(0, up), fontsize=large, **look)
        axes.annotate(f"{shares[row, column]:.0%}", (column, row), xytext=(0, down), fontsize=small, **look)
    axes.set_xticks(range(len(names)), names, rotation=45 if many else 30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name}\nn = {n:.0f}" for name, n in zip(names, counts.sum(1), strict=True)])
    axes.set(xlabel="Predicted", ylabel="Actual")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, label="Share of the actual class", format="{x:.0%}")
    bar.outline.set_visible(False)
    return figure


def roc(answers: Answers, labels: np.ndarray, contract: Contract, measured: WholeHeadline) -> Figure:
    """Each class against the rest, and malignant against benign with its operating point; areas with intervals."""
    figure, auroc = blank(11, 6.2, "ROC"), measured.malignant_auroc
    axes = figure.subplots()
    curves = [
        (each.label, answers.probabilities[:, index], labels == index) for index, each in enumerate(contract.classes)
    ]
    areas = [measured.per_class[each.key].auroc for each in contract.classes]
    panels = [axes]
    if min(each.value for each in (*areas, auroc) if each) > 0.95:  # the curves crowd the corner: show it larger
        panels.append(axes.inset_axes((0.44, 0.25, 0.53, 0.53)))  # its tick labels lie beside the diagonal
        panels[-1].set(xlim=(0, 0.2), ylim=(0.8, 1.005), xticks=[0, 0.1, 0.2], yticks=[0.8, 0.9, 1])
    for panel in panels:
        for (label, scores, positive), area, (colour, dashes) in zip(curves, areas, looks(len(curves)), strict=True):
            fpr, tpr, _ = roc_curve(positive, scores)
            text = f"{label} against the rest: {area}"
            panel.plot(fpr, tpr, color=colour, linestyle=dashes, linewidth=1.6, label=text)
        if answers.malignant is not None and answers.p_malignant is not None:
            is_malignant = np.array([c.malignant for c in contract.classes])[labels]
            found, false_alarms = (answers.malignant[kind].mean() for kind in (is_malignant, ~is_malignant))
            fpr, tpr, _ = roc_curve(is_malignant, answers.p_malignant)
            panel.plot(fpr, tpr, color=INK, linewidth=2.2, label=f"Malignant against benign: {auroc}")
            text = f"Operating point: sensitivity {found:.3f}, specificity {1 - false_alarms:.3f}"
            panel.scatter(false_alarms, found, 80, color=RED, edgecolor="white", zorder=5, label=text)
        panel.grid(True)

    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
    axes.set(xlim=(-0.02, 1), ylim=(0, 1.02), aspect="equal", xlabel="1 − specificity", ylabel="Sensitivity")
    title = {"title": "Area under the curve", "alignment": "left", "title_fontsize": 9}
    legend(figure, axes, loc="outside center right", ncols=1, handlelength=5, **title)
    return figure


def training_curves(table: pd.DataFrame) -> Figure:
    """Loss and accuracy over the epochs of `tables.history`, with the boundary between its phases."""
    figure = blank(10, 4.3, "Training curves")
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("loss", "accuracy"), strict=True):
        axes.plot(table["step"], table[metric], color=ORANGE, linestyle="--", marker=".", label="training")
        if table[f"val_{metric}"].notna().any():  # with folds, the model learns from all
            axes.plot(table["step"], table[f"val_{metric}"], color=BLUE, marker="o", markersize=4, label="validation")
        for phase, steps in table.groupby("phase", sort=False)["step"]:
            if steps.iloc[0] > 1:
                axes.axvline(steps.iloc[0] - 0.5, color=FAINT, linewidth=1)
            middle = (steps.iloc[0] + steps.iloc[-1]) / 2
            axes.text(middle, 1.02, phase, transform=axes.get_xaxis_transform(), ha="center", fontsize=9, color=FAINT)
        axes.set(xlabel="Epoch", ylabel=metric.capitalize(), xlim=(0.5, len(table) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True)
    legend(figure, *panels)
    return figure


def mistakes(
    images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, names: list[str]
) -> Figure:
    """The most confident wrong answers as images [N, S, S, 3]; below each: actual → predicted, confidence."""
    wrong = np.flatnonzero(predicted != labels)
    if not len(wrong):
        figure = blank(6, 1.5, "No mistakes")
        figure.text(0.5, 0.3, f"All {len(labels)} images were classified correctly.", ha="center", va="center")
        return figure
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    columns = min(4, len(worst))
    rows = -(-len(worst) // columns)
    title = f"The {len(worst)} most confident of {len(wrong)} mistakes" if len(wrong) > 1 else "The only mistake"
    figure = blank(max(6.0, 2.5 * columns), 3.0 * rows, title)
    for place, index in enumerate(worst, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(images[index], interpolation="bicubic")
        text = f"{names[labels[index]]}\n→ {names[predicted[index]]}, {confidence[index]:.2f}"
        axes.set_xlabel(text, fontsize=9, linespacing=1.35)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure
