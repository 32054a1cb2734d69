"""Fits temperature, operating point, referral thresholds and the unlikeness distance to the trained network.

Reads:  models/model.keras, data/prepared/ (training and validation splits), params.calibrate
Writes: models/calibration.json (temperature, thresholds, validation metrics)
        models/unlikeness.npz (class means, directions, variances, scale)
Run:    python -m pipeline.calibrate
"""

from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from leukdetect import images
from pipeline import params, stage
from pipeline.data import prepared
from pipeline.model_file import calibration
from pipeline.network import inference, trained


def main() -> None:
    recipe = params.load()
    settings = recipe.calibrate
    whole = trained.load_model()
    pixels, train = prepared.read("train")
    _, val = prepared.read("val")
    _, train_features = inference.forward(whole, pixels, train.index.to_numpy())
    logits, features = inference.forward(whole, pixels, val.index.to_numpy())
    labels = val["label"].to_numpy()

    temperature = calibration.fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature, axis=1)
    malignant = np.array([c.malignant for c in recipe.classes])
    p_malignant = probabilities[:, malignant].sum(axis=1)

    space = calibration.fit_unlikeness(train_features, train["label"].to_numpy(), settings.components)
    distance = calibration.unlikeness(features, space)
    space["scale"] = np.array(np.quantile(distance, settings.unlikeness_quantile), np.float32)

    measures = (images.brightness, images.sharpness, images.stain)
    looks = np.array([[measure(pixels[row]) for measure in measures] for row in train.index])
    predicted = probabilities.argmax(axis=1)
    result: dict[str, Any] = {
        "temperature": temperature,
        "target_sensitivity": settings.target_sensitivity if recipe.tells_malignancy else None,
        "thresholds": {
            "malignant": calibration.operating_point(p_malignant, malignant[labels], settings.target_sensitivity)
            if recipe.tells_malignancy
            else None,
            "confidence": float(np.quantile(probabilities.max(axis=1), settings.refer_share)),
            **calibration.quality_bounds(looks),
        },
        "validation": {
            "images": len(labels),
            "accuracy": float((predicted == labels).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
            "nll": calibration.nll(logits / temperature, labels),
            "nll_before_temperature": calibration.nll(logits, labels),
        },
    }
    with stage.writing(calibration.UNLIKENESS) as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, **space)
    stage.seal(calibration.UNLIKENESS)
    stage.write_json(calibration.CALIBRATION, result)
    validation, thresholds = result["validation"], result["thresholds"]
    print(
        f"validation: {len(labels)} images, balanced accuracy {validation['balanced_accuracy']:.3f}, "
        f"NLL {validation['nll_before_temperature']:.3f} → {validation['nll']:.3f} at temperature {temperature:.2f}\n"
        f"referred below confidence {thresholds['confidence']:.3f}"
    )
    if recipe.tells_malignancy:
        print(f"malignant from P ≥ {thresholds['malignant']:.3f}")


if __name__ == "__main__":
    stage.run(main)
