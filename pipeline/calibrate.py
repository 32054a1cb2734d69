"""Fits what turns the network's outputs into answers, on images that it did not learn from.

Those are the validation split; with `estimate.folds` all images, as the fold's model that did not see them answered.
The temperature, the operating point and the referral threshold come from them; the bounds of brightness, sharpness and
stain from the training split; the unlikeness distance from training features, its limit from the others' distances.

Reads:  data/prepared/, models/model.keras or data/folds/, params
Writes: models/calibration.json, models/unlikeness.npz
Run:    python -m pipeline.calibrate
"""

from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score

from leukdetect import images
from pipeline import params, stage
from pipeline.data import prepared
from pipeline.model_file import calibration, out_of_fold
from pipeline.network import inference, trained


def main() -> None:
    recipe = params.load()
    settings = recipe.calibrate
    whole = trained.load_model()
    pixels, train = prepared.read("train")
    train_features = inference.low_level(whole, pixels, train.index.to_numpy())
    space = calibration.fit_unlikeness(train_features, train["label"].to_numpy(), settings.components)

    if recipe.estimate.folds:
        _, asked = prepared.read()
        held_out = out_of_fold.read(recipe, asked, "fp32")
        logits, distance = held_out.logits, held_out.outputs["unlikeness"]
    else:
        _, asked = prepared.read("val")
        logits, features = inference.forward(whole, pixels, asked.index.to_numpy())
        distance = calibration.unlikeness(features, space)
    labels = asked["label"].to_numpy()
    limits = calibration.fit_limits(logits, labels, recipe)
    space["scale"] = np.array(np.quantile(distance, settings.unlikeness_quantile), np.float32)

    looks = np.array([[*images.quality(pixels[row]), images.stain(pixels[row])] for row in train.index])
    predicted = logits.argmax(axis=1)
    result: dict[str, Any] = {
        "temperature": limits.temperature,
        "target_sensitivity": settings.target_sensitivity if recipe.tells_malignancy else None,
        "thresholds": {
            "malignant": limits.malignant,
            "confidence": limits.confidence,
            **calibration.quality_bounds(looks),
        },
        "validation": {
            "images": len(labels),
            "accuracy": float((predicted == labels).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
            "nll": calibration.nll(logits / limits.temperature, labels),
            "nll_before_temperature": calibration.nll(logits, labels),
        },
    }
    with stage.writing(calibration.UNLIKENESS) as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, **space)
    stage.seal(calibration.UNLIKENESS)
    stage.write_json(calibration.CALIBRATION, result)
    validation = result["validation"]
    print(
        f"{'held out' if recipe.estimate.folds else 'validation'}: {len(labels)} images, balanced accuracy "
        f"{validation['balanced_accuracy']:.3f}, NLL {validation['nll_before_temperature']:.3f} → "
        f"{validation['nll']:.3f} at temperature {limits.temperature:.2f}\n"
        f"referred below confidence {limits.confidence:.3f}"
    )
    if limits.malignant is not None:
        print(f"malignant from P ≥ {limits.malignant:.3f}")


if __name__ == "__main__":
    stage.run(main)
