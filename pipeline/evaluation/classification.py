"""All that one number says of a model file: sections of reports/metrics.json."""

import numpy as np

from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Answers
from pipeline.evaluation.metrics import Estimate, McNemar


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


def wilson(labels: np.ndarray, malignant: np.ndarray, answers: Answers, keys: list[str]) -> dict[str, Estimate]:
    """Wilson's intervals of sensitivity, specificity and each class's recall, and what follows for their mean."""
    is_malignant, correct = malignant[labels], answers.predicted == labels
    flags = {
        "malignant_sensitivity": answers.malignant[is_malignant],
        "malignant_specificity": ~answers.malignant[~is_malignant],
    } | {f"recall_{key}": correct[labels == index] for index, key in enumerate(keys)}
    found = {name: metrics.wilson(int(flag.sum()), len(flag)) for name, flag in flags.items()}
    return found | {"balanced_accuracy": mean_of([found[f"recall_{key}"] for key in keys])}


def mean_of(proportions: list[Estimate]) -> Estimate:
    """The mean of independent proportions; its interval from theirs (MOVER; Zou and Donner 2008, Stat Med 27:1693)."""
    value, low, high = (np.array([getattr(each, end) for each in proportions]) for end in ("value", "low", "high"))
    mean, below, above = value.mean(), np.linalg.norm(value - low), np.linalg.norm(high - value)
    return Estimate(float(mean), float(mean - below / len(value)), float(mean + above / len(value)))


def per_class(
    labels: np.ndarray, predicted: np.ndarray, keys: list[str], weights: np.ndarray
) -> dict[str, dict[str, Estimate]]:
    matrix = metrics.confusion(labels, predicted, len(keys), weights)
    values = {"precision": metrics.precision(matrix), "recall": metrics.recall(matrix), "f1": metrics.f1(matrix)}
    return {
        key: {name: metrics.estimate(value[:, index]) for name, value in values.items()}
        for index, key in enumerate(keys)
    }


def agreement(
    fp32: Answers, int8: Answers, labels: np.ndarray, weights: np.ndarray
) -> dict[str, Estimate | McNemar | float]:
    """How far INT8's answers are from FP32's; differences are of a probability. In McNemar's test A is FP32."""
    difference = np.abs(fp32.probabilities - int8.probabilities)
    return {
        "equal_argmax": metrics.estimate(metrics.mean(fp32.predicted == int8.predicted, weights)),
        "mcnemar": metrics.mcnemar(fp32.predicted == labels, int8.predicted == labels),
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
    }
