"""How often a model file is right, as single numbers: sections of reports/metrics.json."""

from dataclasses import astuple

import numpy as np

from pipeline.evaluation import calibration, metrics
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.metrics import Estimate, McNemar, Number, Section


class Hits(Section):
    """What the predicted classes alone tell."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate


class PerClass(Section):
    """One class against the rest."""

    precision: Estimate
    recall: Estimate
    f1: Estimate
    auroc: Estimate


class WholeHeadline(Hits):
    """A headline, each class's results, and Wilson's intervals."""

    malignant_sensitivity: Estimate | None = None  # these three where some classes are malignant and some are not
    malignant_specificity: Estimate | None = None
    malignant_auroc: Estimate | None = None
    macro_auroc: Estimate
    ece: Estimate
    brier: Estimate
    nll: Estimate
    coverage: Estimate
    accuracy_reported: Estimate
    per_class: dict[str, PerClass]
    wilson: dict[str, Estimate]


class Int8(Section):
    """How far INT8's answers are from FP32's, which is A in McNemar's test; differences are of a probability."""

    balanced_accuracy_drop: Estimate
    equal_argmax: Estimate
    mcnemar: McNemar
    mean_difference: Number
    max_difference: Number


def hits(predicted: np.ndarray, labels: np.ndarray, classes: int, weights: np.ndarray) -> Hits:
    """Measures predicted classes [N]."""
    f1 = metrics.per_class(metrics.confusion(labels, predicted, classes, weights))["f1"]
    return Hits(
        accuracy=metrics.estimate_mean(predicted == labels, weights),
        balanced_accuracy=metrics.estimate(metrics.balanced_accuracy(labels, predicted, weights)),
        macro_f1=metrics.estimate(f1.mean(1)),
    )


def whole(answers: Answers, test: Sample, malignant: np.ndarray, keys: list[str]) -> WholeHeadline:
    """Measures a model file's answers, with Wilson's intervals where the bootstrap may have no width.

    `malignant`: bool [C].
    """
    labels, weights, predicted = test.labels, test.weights, answers.predicted
    areas = [metrics.auroc(p, labels == index, weights) for index, p in enumerate(answers.probabilities.T)]
    by_class = metrics.per_class(metrics.confusion(labels, predicted, len(keys), weights))
    by_class["auroc"] = np.stack(areas, axis=1)  # [R, C], as the others
    values = calibration.scores(answers.probabilities, labels, weights) | {
        "macro_auroc": by_class["auroc"].mean(1),
        "coverage": metrics.mean(answers.reported, weights),
        "accuracy_reported": metrics.mean(predicted == labels, weights * answers.reported),
    }
    right = {f"recall_{key}": predicted[labels == index] == index for index, key in enumerate(keys)}
    if answers.malignant is not None and answers.p_malignant is not None:
        called, is_malignant = answers.malignant, malignant[labels]
        values |= {
            "malignant_sensitivity": metrics.mean(called, weights * is_malignant),
            "malignant_specificity": metrics.mean(~called, weights * ~is_malignant),
            "malignant_auroc": metrics.auroc(answers.p_malignant, is_malignant, weights),
        }
        right |= {
            "malignant_sensitivity": called[is_malignant],
            "malignant_specificity": ~called[~is_malignant],
        }
    wilson = {name: metrics.wilson(int(flags.sum()), len(flags)) for name, flags in right.items()}
    return WholeHeadline(
        **dict(hits(predicted, labels, len(keys), weights)),
        **metrics.estimates(values),
        per_class={
            key: PerClass(**metrics.estimates({name: value[:, index] for name, value in by_class.items()}))
            for index, key in enumerate(keys)
        },
        wilson=wilson | {"balanced_accuracy": mean_of([wilson[f"recall_{key}"] for key in keys])},
    )


def mean_of(proportions: list[Estimate]) -> Estimate:
    """The mean of independent proportions; its interval from theirs (MOVER; Zou and Donner 2008, Stat Med 27:1693)."""
    value, low, high = np.array([astuple(each) for each in proportions]).T
    mean, below, above = value.mean(), np.linalg.norm(value - low), np.linalg.norm(high - value)
    return Estimate(float(mean), float(mean - below / len(value)), float(mean + above / len(value)))


def agreement(fp32: Answers, int8: Answers, test: Sample) -> Int8:
    """Compares INT8's answers with FP32's."""
    labels, difference = test.labels, np.abs(fp32.probabilities - int8.probabilities)
    return Int8(
        balanced_accuracy_drop=metrics.paired_bootstrap(labels, fp32.predicted, int8.predicted, test.weights),
        equal_argmax=metrics.estimate_mean(fp32.predicted == int8.predicted, test.weights),
        mcnemar=metrics.mcnemar(fp32.predicted == labels, int8.predicted == labels),
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
    )
