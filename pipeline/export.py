"""Turns the model and its calibration into two self-explaining files, FP32 and INT8, and compares FP32 with Keras.

Reads:  models/ (model.keras, calibration.json, unlikeness.npz), data/ (prepared/, manifest.csv, source.json), params
Writes: models/leukdetect.onnx, models/leukdetect.int8.onnx (each with the whole contract), reports/parity.json
Run:    python -m pipeline.export
"""

import datetime
import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy.special import softmax

from leukdetect import contract, images
from leukdetect.runtime import open_session
from pipeline import params, stage
from pipeline.data import manifest, prepared
from pipeline.data.source import read_source
from pipeline.model_file import assemble, drift_reference, graph, onnx_model, prediction_sets, quantise, similar_index
from pipeline.model_file.calibration import CALIBRATION, UNLIKENESS
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.network import inference, to_onnx, trained
from pipeline.params import Params
from pipeline.registry import git, tracking
from pipeline.stage import Problem

PARITY = Path("reports/parity.json")
PARITY_LIMIT = 1e-4  # largest difference in a probability between Keras and ONNX


def main() -> None:
    recipe, source, whole = params.load(), read_source(), trained.load_model()
    calibration = stage.read_json(CALIBRATION, "calibrate")
    with np.load(stage.require(UNLIKENESS, "calibrate")) as arrays:
        space = dict(arrays)
    pixels, train = prepared.read("train")
    _, val = prepared.read("val")
    labels, groups, sides = val["label"].to_numpy(), val["group"].tolist(), manifest.sides(val["path"])

    function = graph.contract_function(whole, calibration["temperature"], space)
    proto = to_onnx.to_onnx(function, recipe.prepare.image_size, whole.weights)
    chosen = np.random.default_rng(recipe.seed).permutation(train.index)[: recipe.export.int8_images]
    quantised = quantise.quantise(proto, pixels[np.sort(chosen)])
    quantise.rescale_unlikeness(quantised, pixels[val.index], recipe.calibrate.unlikeness_quantile)

    facts = _facts(recipe, calibration, source)
    indexed = train.iloc[similar_index.choose(train["label"].to_numpy(), recipe.seed)]
    thumbnails = pixels[indexed.index] if source.get("thumbnails") else None
    with stage.writing(FP32) as fp32, stage.writing(INT8) as int8:
        for precision, made, path in (("fp32", proto, fp32), ("int8", quantised, int8)):
            session = open_session(made.SerializeToString())
            answers = onnx_model.answers(session, pixels[val.index], contract.OBSERVED)
            signals = drift_reference.signals(pixels[val.index], answers)
            own = {  # fitted to this graph's own answers to the validation images
                "precision": precision,
                "prediction_sets": prediction_sets.fit(answers["probabilities"], labels, recipe.calibrate.set_error),
                "reference": drift_reference.fit(signals, groups, len(recipe.classes), recipe.seed, sides),
            }
            embedding = onnx_model.answers(session, pixels[indexed.index], ("embedding",))["embedding"]
            index = similar_index.fit(embedding, indexed["label"].to_numpy(), indexed["sha256"].tolist(), thumbnails)
            assemble.save(made, session, path, recipe, facts | own, index)

    stage.seal(FP32, INT8)
    parity = _parity(whole, calibration["temperature"], pixels)
    stage.write_json(PARITY, parity)
    apart, otherwise = parity["max_difference"], parity["argmax_differs"]
    if apart > PARITY_LIMIT or otherwise:
        FP32.unlink()
        INT8.unlink()
        raise Problem(
            f"the ONNX file differs from Keras on the test split: by up to {apart:.2g} in a probability (allowed "
            f"{PARITY_LIMIT:g}), another class on {otherwise} images. It was removed; the conversion is at fault: "
            "compare the versions of tensorflow and tf2onnx with requirements/."
        )
    print(f"ONNX equals Keras on {parity['images']} test images: at most {apart:.2g} apart, same class")
    for path in (FP32, INT8):
        print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB")


def _facts(recipe: Params, calibration: dict[str, Any], source: dict[str, Any]) -> dict[str, object]:
    """What the contracts of both files say."""
    data, size = prepared.digest(), recipe.prepare.image_size
    return {
        "name": recipe.register_.name,
        "classes": [c.model_dump(include={"key", "label", "malignant"}) for c in recipe.classes],
        "decode": {"size": size, "behaviour": images.behaviour(size), "scaled": True},
        **{key: calibration[key] for key in ("temperature", "target_sensitivity", "thresholds", "validation")},
        "golden_tolerance": recipe.export.golden_tolerance,
        "provenance": {
            "source": source["origin"],
            "synthetic": source["synthetic"],
            "data_sha256": data,
            "params_sha256": params.digest(recipe),
            "git_commit": git.git_commit(),
            "mlflow_run": tracking.run_id(recipe, data),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "wording": recipe.wording.model_dump(include=set(contract.Wording.model_fields)),
        **recipe.wording.model_dump(include={"intended_use", "disclaimer"}),
    }


def _parity(whole: keras.Model, temperature: float, pixels: np.ndarray) -> dict[str, float]:
    _, test = prepared.read("test")
    logits, _ = inference.forward(whole, pixels, test.index.to_numpy())
    keras_probabilities = softmax(logits / temperature, axis=1)
    ours = onnx_model.load(FP32).predict(pixels[test.index])["probabilities"]
    return {
        "images": len(test),
        "max_difference": float(np.abs(ours - keras_probabilities).max()),
        "argmax_differs": int((ours.argmax(1) != keras_probabilities.argmax(1)).sum()),
    }


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises pre-processing that has just been done
    stage.run(main)
