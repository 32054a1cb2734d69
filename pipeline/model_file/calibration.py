"""Fits what turns a network's outputs into answers: temperature, operating point, unlikeness, bounds of quality."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from pipeline.params import Params

CALIBRATION = Path("models/calibration.json")
UNLIKENESS = Path("models/unlikeness.npz")
TEMPERATURES = (0.05, 20.0)
HIGHEST_POINT = 0.5  # of P(malignant)


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood (natural log) of labels [n] under logits [n, C]."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in TEMPERATURES of least NLL. Guo et al. 2017, "On calibration of modern neural networks"."""
    best = minimize_scalar(lambda t: nll(logits / np.exp(t), labels), bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(best.x))


def operating_point(p_malignant: np.ndarray, malignant: np.ndarray, target: float) -> float:
    """The highest threshold, up to HIGHEST_POINT, at which P(malignant) [n] finds the target share of malignant images.

    Why no higher: if validation is separated perfectly, the highest threshold would be close to 1, and a malignant
    image that is a little less certain would be missed.
    """
    found = np.sort(p_malignant[malignant])
    allowed = int(np.floor((1 - target) * len(found) + 1e-9))
    return float(min(found[allowed], HIGHEST_POINT))


class Limits(NamedTuple):
    """What the scores of held-out images say of later ones."""

    temperature: float
    malignant: float | None  # the operating point; None where all classes are malignant, or none
    confidence: float


def fit_limits(logits: np.ndarray, labels: np.ndarray, recipe: Params) -> Limits:
    """The limits from logits [n, C] and classes [n] of images that the model did not learn from."""
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature, axis=1)
    point = None
    if recipe.tells_malignancy:
        malignant = np.array([c.malignant for c in recipe.classes])
        p_malignant = probabilities[:, malignant].sum(axis=1)
        point = operating_point(p_malignant, malignant[labels], recipe.calibrate.target_sensitivity)
    return Limits(temperature, point, float(np.quantile(probabilities.max(axis=1), recipe.calibrate.refer_share)))


def fit_unlikeness(features: np.ndarray, labels: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Fits class-conditional distances to the `model.low_level` features [n, L] of training images.

    Class means with one covariance for all, early in the network (Lee et al. 2018, arXiv:1807.03888), of features at
    length 1 (Mueller and Hein 2025, arXiv:2505.18032). Early, since the last features hold little besides what
    separates the classes: there a blank slide may be nearer to a class than a smear is (docs/results.md). The
    covariance is probabilistic PCA (Tipping and Bishop 1999): `components` directions have their own variance, all
    others share one, so that features outside the training images' subspace count too.
    """
    z = features.astype(np.float64)
    means = np.stack([z[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    centred = z - means[labels]
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    variance = singular**2 / len(z)
    k = min(components, int((variance > 1e-12).sum()) - 1)
    rest = variance[k:].sum() / (z.shape[1] - k)
    floor = max(rest, 1e-9)
    return {
        "means": means.astype(np.float32),
        "directions": directions[:k].T.astype(np.float32),
        "variances": np.maximum(variance[:k], floor).astype(np.float32),
        "rest": np.array(floor, np.float32),
        "scale": np.array(1, np.float32),
    }


def unlikeness(features: np.ndarray, space: dict[str, np.ndarray]) -> np.ndarray:
    """Distance [n] from features [n, L] to the nearest class, in units of `space["scale"]`."""
    offset = features[:, None, :] - space["means"][None]  # [n, C, L]
    along = offset @ space["directions"]
    outside = np.maximum((offset**2).sum(-1) - (along**2).sum(-1), 0)
    squared = (along**2 / space["variances"]).sum(-1) + outside / space["rest"]
    return np.sqrt(squared.min(axis=1)) / space["scale"]


def quality_bounds(looks: np.ndarray) -> dict[str, Any]:
    """Bounds with a margin around the brightness, sharpness and stain [n, 3] of training images."""
    low, high = np.quantile(looks, (0.005, 0.995), axis=0)
    spare = 0.25 * (high[0] - low[0])
    return {
        "brightness": [float(max(low[0] - spare, 0)), float(min(high[0] + spare, 255))],
        "min_sharpness": float(low[1] / 2),
        "min_stain": float(0.9 * low[2]),
    }
