"""Turns the model and its calibration into two self-explaining files, FP32 and INT8, and compares FP32 with Keras.

Reads:  models/ (model.keras, calibration.json, unlikeness.npz), data/ (prepared/, manifest.csv, source.json), params
Writes: models/leukdetect.onnx, models/leukdetect.int8.onnx (each with the whole contract), reports/parity.json
Run:    python -m pipeline.export
"""

import datetime
import logging
from typing import Any

import numpy as np

from leukdetect import contract, images
from leukdetect.runtime import open_session
from pipeline import params, stage
from pipeline.data import manifest, prepared
from pipeline.data.source import read_source
from pipeline.model_file import (
    assemble,
    drift_reference,
    graph,
    onnx_model,
    parity,
    prediction_sets,
    quantise,
    similar_index,
    validation,
)
from pipeline.model_file.calibration import CALIBRATION, UNLIKENESS
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.network import bases, to_onnx, trained
from pipeline.params import Params
from pipeline.registry import git, tracking


def main() -> None:
    recipe, source, whole = params.load(), read_source(), trained.load_model()
    calibration = stage.read_json(CALIBRATION, "calibrate")
    with np.load(stage.require(UNLIKENESS, "calibrate")) as arrays:
        space = dict(arrays)
    pixels, train = prepared.read("train")
    _, asked = prepared.read(None if recipe.estimate.folds else "val")  # what the model did not learn from
    labels, groups, sides = asked["label"].to_numpy(), asked["group"].tolist(), manifest.sides(asked["path"])

    function = graph.contract_function(whole, calibration["temperature"], space)
    proto = to_onnx.to_onnx(function, recipe.prepare.image_size, whole.weights)
    rng = np.random.default_rng(recipe.seed)
    chosen = rng.permutation(train.index)[: recipe.export.int8_images]
    quantised = quantise.quantise(proto, pixels[np.sort(chosen)])
    files = {"fp32": proto, "int8": quantised}
    scale = float(space["scale"])
    answered = validation.answers(recipe, asked, files, calibration["temperature"], scale, pixels)

    facts = _facts(recipe, calibration, source)
    indexed = train.iloc[similar_index.choose(train["label"].to_numpy(), recipe.seed)]
    thumbnails = pixels[indexed.index] if source.get("thumbnails") else None
    with stage.writing(FP32) as fp32, stage.writing(INT8) as int8:
        for (precision, made), path in zip(files.items(), (fp32, int8), strict=True):
            session = open_session(made.SerializeToString())
            answers, folds = answered[precision]
            signals = drift_reference.signals(pixels[asked.index], answers)
            own = {  # fitted to this graph's own answers
                "precision": precision,
                "prediction_sets": prediction_sets.fit(answers["probabilities"], labels, recipe.calibrate.set_error),
                "reference": drift_reference.fit(signals, groups, len(recipe.classes), recipe.seed, sides, folds),
            }
            embedding = onnx_model.answers(session, pixels[indexed.index], ("embedding",))["embedding"]
            index = similar_index.fit(embedding, indexed["label"].to_numpy(), indexed["sha256"].tolist(), thumbnails)
            assemble.save(made, session, path, recipe, facts | own, index)

    stage.seal(FP32, INT8)
    parity.check(whole, calibration["temperature"], pixels)
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
            "source": source["origin"] + bases.credit(recipe.features.weights, recipe.model.backbone),
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


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises pre-processing that has just been done
    stage.run(main)
