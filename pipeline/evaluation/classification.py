"""All that one number says of a model file: sections of reports/metrics.json."""

import numpy as np

from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.metrics import Estimate, McNemar, Number, Section


class Hits(Section):
    """What needs nothing but the class that was given."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate


class Headline(Hits):
    """Everything that one number says of a model file."""

    malignant_sensitivity: Estimate
    malignant_specificity: Estimate
    malignant_auroc: Estimate
    macro_auroc: Estimate
    ece: Estimate
    brier: Estimate
    nll: Estimate
    coverage: Estimate
    accuracy_reported: Estimate


class PerClass(Section):
    """One class against the rest."""

    precision: Estimate
    recall: Estimate
    f1: Estimate


class WholeHeadline(Headline):
    """With what is said of the FP32 file only."""

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
    """Of predicted classes [N]."""
    return Hits(
        accuracy=metrics.estimate(metrics.mean(predicted == labels, weights)),
        balanced_accuracy=metrics.estimate(metrics.balanced_accuracy(labels, predicted, weights)),
        macro_f1=metrics.estimate(metrics.f1(metrics.confusion(labels, predicted, classes, weights)).mean(1)),
    )


def headline(answers: Answers, test: Sample, malignant: np.ndarray) -> Headline:
    """Of a model file's answers. `malignant`: bool [C]."""
    labels, weights, probabilities = test.labels, test.weights, answers.probabilities
    correct, is_malignant = answers.predicted == labels, malignant[labels]
    one_vs_rest = [metrics.auroc(p, labels == index, weights) for index, p in enumerate(probabilities.T)]
    values = {
        "malignant_sensitivity": metrics.mean(answers.malignant, weights * is_malignant),
        "malignant_specificity": metrics.mean(~answers.malignant, weights * ~is_malignant),
        "malignant_auroc": metrics.auroc(answers.p_malignant, is_malignant, weights),
        "macro_auroc": np.mean(one_vs_rest, axis=0),
        "ece": metrics.ece(answers.confidence, correct, weights),
        "brier": metrics.mean(metrics.brier(probabilities, labels), weights),
        "nll": metrics.mean(metrics.nll(probabilities, labels), weights),
        "coverage": metrics.mean(answers.reported, weights),
        "accuracy_reported": metrics.mean(correct, weights * answers.reported),
    }
    return Headline(
        **dict(hits(answers.predicted, labels, len(malignant), weights)),
        **{name: metrics.estimate(value) for name, value in values.items()},
    )


def whole(answers: Answers, test: Sample, malignant: np.ndarray, keys: list[str]) -> WholeHeadline:
    """The headline with each class's results, and Wilson's intervals where the bootstrap may have no width."""
    return WholeHeadline(
        **dict(headline(answers, test, malignant)),
        per_class=per_class(answers.predicted, test, keys),
        wilson=wilson(answers, test, malignant, keys),
    )


def wilson(answers: Answers, test: Sample, malignant: np.ndarray, keys: list[str]) -> dict[str, Estimate]:
    """Wilson's intervals of sensitivity, specificity and each class's recall, and what follows for their mean."""
    is_malignant, correct = malignant[test.labels], answers.predicted == test.labels
    flags = {
        "malignant_sensitivity": answers.malignant[is_malignant],
        "malignant_specificity": ~answers.malignant[~is_malignant],
    } | {f"recall_{key}": correct[test.labels == index] for index, key in enumerate(keys)}
    found = {name: metrics.wilson(int(flag.sum()), len(flag)) for name, flag in flags.items()}
    return found | {"balanced_accuracy": mean_of([found[f"recall_{key}"] for key in keys])}


def mean_of(proportions: list[Estimate]) -> Estimate:
    """The mean of independent proportions; its interval from theirs (MOVER; Zou and Donner 2008, Stat Med 27:1693)."""
    value, low, high = (np.array([getattr(each, end) for each in proportions]) for end in ("value", "low", "high"))
    mean, below, above = value.mean(), np.linalg.norm(value - low), np.linalg.norm(high - value)
    return Estimate(float(mean), float(mean - below / len(value)), float(mean + above / len(value)))


def per_class(predicted: np.ndarray, test: Sample, keys: list[str]) -> dict[str, PerClass]:
    """Each class's precision, recall and F1, by key."""
    matrix = metrics.confusion(test.labels, predicted, len(keys), test.weights)
    values = {"precision": metrics.precision(matrix), "recall": metrics.recall(matrix), "f1": metrics.f1(matrix)}
    return {
        key: PerClass(**{name: metrics.estimate(value[:, index]) for name, value in values.items()})
        for index, key in enumerate(keys)
    }


def agreement(fp32: Answers, int8: Answers, test: Sample) -> Int8:
    """How far INT8's answers are from FP32's."""
    labels, difference = test.labels, np.abs(fp32.probabilities - int8.probabilities)
    return Int8(
        balanced_accuracy_drop=metrics.paired_bootstrap(labels, fp32.predicted, int8.predicted, test.weights),
        equal_argmax=metrics.estimate(metrics.mean(fp32.predicted == int8.predicted, test.weights)),
        mcnemar=metrics.mcnemar(fp32.predicted == labels, int8.predicted == labels),
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
    )
