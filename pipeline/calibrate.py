"""Makes the model's answers honest: temperature, operating point, when to refer, and what "unlike" means.

Reads:  models/model.keras, data/prepared/ (training and validation splits), params.calibrate
Writes: models/calibration.json (temperature, thresholds, validation metrics)
        models/unlikeness.npz (class means, directions, variances, scale)
Run:    python -m pipeline.calibrate
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import balanced_accuracy_score

from leukdetect import images
from pipeline import params, prepare, stage
from pipeline.fine_tune import MODEL
from pipeline.network import classifier
from pipeline.stage import Problem

CALIBRATION = Path("models/calibration.json")
UNLIKENESS = Path("models/unlikeness.npz")


def main() -> None:
    recipe = params.load()
    settings = recipe.calibrate
    whole = load_model()
    pixels, train = prepare.read("train")
    _, val = prepare.read("val")
    _, train_features = forward(whole, pixels, train.index.to_numpy())
    logits, features = forward(whole, pixels, val.index.to_numpy())
    labels = val["label"].to_numpy()

    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature, axis=1)
    confidence = probabilities.max(axis=1)
    malignant = np.array([c.malignant for c in recipe.classes])

    space = fit_unlikeness(train_features, train["label"].to_numpy(), settings.components)
    distance = unlikeness(features, space)
    space["scale"] = np.array(np.quantile(distance, settings.unlikeness_quantile), np.float32)

    measures = (images.brightness, images.sharpness, images.stain)
    looks = np.array([[measure(pixels[row]) for measure in measures] for row in train.index])
    predicted = probabilities.argmax(axis=1)
    result: dict[str, Any] = {
        "temperature": temperature,
        "target_sensitivity": settings.target_sensitivity,
        "thresholds": {
            "malignant": operating_point(
                probabilities[:, malignant].sum(axis=1), malignant[labels], settings.target_sensitivity
            ),
            "confidence": float(np.quantile(confidence, settings.refer_share)),
            **quality_bounds(looks),
        },
        "validation": {
            "images": len(labels),
            "accuracy": float((predicted == labels).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
            "nll": nll(logits / temperature, labels),
            "nll_before_temperature": nll(logits, labels),
        },
    }
    with stage.writing(UNLIKENESS) as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, **space)
    stage.write_json(CALIBRATION, result)
    validation, thresholds = result["validation"], result["thresholds"]
    print(
        f"validation: {len(labels)} images, balanced accuracy {validation['balanced_accuracy']:.3f}, "
        f"NLL {validation['nll_before_temperature']:.3f} → {validation['nll']:.3f} at temperature {temperature:.2f}\n"
        f"malignant from P ≥ {thresholds['malignant']:.3f}, referred below confidence {thresholds['confidence']:.3f}"
    )


def load_model() -> keras.Model:
    """The trained model. Raises Problem if it is missing."""
    if not MODEL.is_file():
        raise Problem(f"{MODEL} is missing; `dvc repro fine_tune` makes it")
    return keras.models.load_model(MODEL, compile=False)


def forward(whole: keras.Model, pixels: np.ndarray, rows: np.ndarray, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, C] and `model.low_level` features [n, L] of rows of prepared images."""
    outputs = [whole.get_layer("logits").output, classifier.low_level(whole)]
    trunk = tf.function(keras.Model(whole.input, outputs), reduce_retracing=True)
    parts = [
        [tensor.numpy() for tensor in trunk(pixels[rows[start : start + batch]], training=False)]
        for start in stage.progress(range(0, len(rows), batch), "forward", unit="batch")
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood (natural log) of labels [n] under logits [n, C]."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 of least NLL. Guo et al. 2017, "On calibration of modern neural networks"."""
    best = minimize_scalar(lambda t: nll(logits / np.exp(t), labels), bounds=np.log((0.05, 20)), method="bounded")
    return float(np.exp(best.x))


def operating_point(p_malignant: np.ndarray, malignant: np.ndarray, target: float) -> float:
    """The highest threshold, 0.5 at most, at which P(malignant) [n] finds the target share of malignant images.

    The cap: where validation is separated perfectly, the highest threshold would be next to 1, and the next
    malignant image that is a little less certain would be missed.
    """
    found = np.sort(p_malignant[malignant])
    allowed = int(np.floor((1 - target) * len(found) + 1e-9))
    return float(min(found[allowed], 0.5))


def fit_unlikeness(features: np.ndarray, labels: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Fits class-conditional distances to the `model.low_level` features [n, L] of training images.

    Class means with one covariance for all, early in the network (Lee et al. 2018, arXiv:1807.03888), of features at
    length 1 (Mueller and Hein 2025, arXiv:2505.18032). Early, since the last features keep what tells the classes
    apart and little else: there a blank slide may lie nearer to a class than a smear does (docs/results.md). The
    covariance is probabilistic PCA: `components` directions with their own variance, all others sharing one (Tipping
    and Bishop 1999), so that what leaves the training images' subspace counts too.
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
    """Brightness, sharpness and stain [n, 3] of training images to bounds with some of their range to spare."""
    low, high = np.quantile(looks, (0.005, 0.995), axis=0)
    spare = 0.25 * (high[0] - low[0])
    return {
        "brightness": [float(max(low[0] - spare, 0)), float(min(high[0] + spare, 255))],
        "min_sharpness": float(low[1] / 2),
        "min_stain": float(0.9 * low[2]),
    }


if __name__ == "__main__":
    stage.run(main)
