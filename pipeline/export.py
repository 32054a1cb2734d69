"""Turns the model and its calibration into two self-explaining files, FP32 and INT8, and proves them equal to Keras.

Reads:  models/model.keras, models/calibration.json, models/unlikeness.npz, data/prepared/, data/source.json, params
Writes: models/leukdetect.onnx, models/leukdetect.int8.onnx (each with the whole contract), reports/parity.json
Run:    python -m pipeline.export
"""

import base64
import datetime
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from scipy.special import softmax

from leukdetect import contract, images
from leukdetect.similar import Index, metadata
from pipeline import calibrate, params, prepare, stage
from pipeline.data import smears
from pipeline.model_file import drift_reference, graph, onnx_model, prediction_sets, similar_index
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.network import to_onnx
from pipeline.params import Params
from pipeline.registry import tracking
from pipeline.stage import Problem

PARITY = Path("reports/parity.json")
PARITY_LIMIT = 1e-4  # largest difference in a probability between Keras and ONNX


def main() -> None:
    recipe = params.load()
    whole = calibrate.load_model()
    calibration = json.loads(calibrate.CALIBRATION.read_text())
    with np.load(calibrate.UNLIKENESS) as arrays:
        space = dict(arrays)
    pixels, train = prepare.read("train")
    size = recipe.prepare.image_size

    proto = to_onnx.to_onnx(graph.contract_function(whole, calibration["temperature"], space), size, whole.weights)
    chosen = np.random.default_rng(recipe.seed).permutation(train.index)[: recipe.export.int8_images]
    quantised = quantise(proto, pixels[np.sort(chosen)])
    _, val = prepare.read("val")
    quantised, _ = rescale_unlikeness(quantised, pixels[val.index], recipe.calibrate.unlikeness_quantile)

    facts = _facts(recipe, calibration)
    indexed = train.iloc[similar_index.choose(train["label"].to_numpy(), recipe.seed)]
    pictures = pixels[indexed.index] if _source().get("thumbnails") else None
    with stage.writing(FP32) as fp32, stage.writing(INT8) as int8:
        for precision, made, path in (("fp32", proto, fp32), ("int8", quantised, int8)):
            answers = _answers(made, pixels[val.index])
            own = {  # what is true of this very graph's answers to the validation images
                "precision": precision,
                "prediction_sets": prediction_sets.fit(
                    answers["probabilities"], val["label"].to_numpy(), recipe.calibrate.set_error
                ),
                "reference": drift_reference.fit(
                    drift_reference.signals(pixels[val.index], answers),
                    val["group"].tolist(),
                    len(recipe.classes),
                    recipe.seed,
                ),
            }
            embedding = _answers(made, pixels[indexed.index])["embedding"]
            index = similar_index.fit(embedding, indexed["label"].to_numpy(), indexed["sha256"].tolist(), pictures)
            _save(made, path, recipe, facts | own, index)

    parity = _parity(whole, calibration["temperature"], pixels)
    stage.write_json(PARITY, parity)
    if parity["max_difference"] > PARITY_LIMIT or parity["argmax_differs"]:
        FP32.unlink()
        INT8.unlink()
        raise Problem(
            f"the ONNX file differs from Keras on the test split: by up to {parity['max_difference']:.2g} in a "
            f"probability (allowed {PARITY_LIMIT:g}), another class on {parity['argmax_differs']} images. It was "
            "removed; the conversion is at fault: compare the versions of tensorflow and tf2onnx with requirements/."
        )
    print(
        f"ONNX equals Keras on {parity['images']} test images: at most {parity['max_difference']:.2g} apart, same class"
    )
    for path in (FP32, INT8):
        print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB")


class _Images(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray):
        self.rows = iter(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self.rows, None)
        return None if row is None else {"image": row[None]}


def quantise(proto: onnx.ModelProto, pixels: np.ndarray) -> onnx.ModelProto:
    """INT8 of the convolutions and what lies between them; the head, the distance and the maps stay FP32.

    U8S8, per channel, weights in 7 bits: without `reduce_range`, AVX2's multiply saturates and costs points of
    accuracy (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        pixels: uint8 [n, S, S, 3], training images that set the activations' ranges.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(proto, plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            ready,
            done,
            _Images(pixels),
            quant_format=QuantFormat.QDQ,
            # With Relu it rounds once, behind it; without, also what is only there to be cut off, in a step of its own.
            op_types_to_quantize=["Conv", "Add", "MaxPool", "Relu"],
            nodes_to_exclude=_after_pooling(onnx.load(ready)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return onnx.load(done)


def rescale_unlikeness(
    proto: onnx.ModelProto, pixels: np.ndarray, quantile: float
) -> tuple[onnx.ModelProto, np.ndarray]:
    """Puts the referral threshold of a quantised graph back to 1.0 on validation images uint8 [n, S, S, 3].

    Rounding moves features out of the training images' subspace, so that every distance grows; with FP32's scale
    a third of ordinary images would be referred.

    Returns:
        The graph, and its unlikeness [n] of these images.
    """
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    distances = np.concatenate([session.run(["unlikeness"], {"image": row[None]})[0] for row in pixels])
    factor = np.float32(1 / np.quantile(distances, quantile))
    for node in proto.graph.node:
        node.output[:] = ["unlikeness_unscaled" if name == "unlikeness" else name for name in node.output]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor), "unlikeness_factor"))
    proto.graph.node.append(
        onnx.helper.make_node("Mul", ["unlikeness_unscaled", "unlikeness_factor"], ["unlikeness"], "rescale_unlikeness")
    )
    return proto, distances * factor


def _after_pooling(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes that do not lead to the embedding: head, distance, maps."""
    before = onnx_model.leads_to(proto, "embedding")
    return [node.name for node in proto.graph.node if node.name not in before]


def _source() -> dict[str, Any]:
    source: dict[str, Any] = json.loads(Path("data/source.json").read_text())
    return source


def _facts(recipe: Params, calibration: dict) -> dict[str, object]:
    source = _source()
    data = prepare.digest()
    return {
        "name": recipe.register_.name,
        "classes": [{"key": c.key, "label": c.label, "malignant": c.malignant} for c in recipe.classes],
        "decode": {"size": recipe.prepare.image_size, "behaviour": images.behaviour(recipe.prepare.image_size)},
        "temperature": calibration["temperature"],
        "target_sensitivity": calibration["target_sensitivity"],
        "thresholds": calibration["thresholds"],
        "golden_tolerance": recipe.export.golden_tolerance,
        "validation": calibration["validation"],
        "provenance": {
            "source": source["origin"],
            "synthetic": source["synthetic"],
            "data_sha256": data,
            "params_sha256": params.digest(recipe),
            "git_commit": tracking.git_commit(),
            "mlflow_run": tracking.run_id(recipe, data),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "intended_use": (
            "Research into decision support: a second look at peripheral blood smear images "
            "of the kind it was trained on."
        ),
    }


def _answers(proto: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """A graph's outputs for images uint8 [n, S, S, 3], by name."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(list(contract.OBSERVED), {"image": row[None]}) for row in stage.progress(pixels, "answers")]
    return {name: np.concatenate(part) for name, part in zip(contract.OBSERVED, zip(*parts, strict=True), strict=True)}


def _save(proto: onnx.ModelProto, path: Path, recipe: Params, facts: dict[str, object], index: Index) -> None:
    """Adds the golden answers, which this very graph gives here, the contract and the similar cases; then saves."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    size = recipe.prepare.image_size
    golden = []
    # Rendered images, whatever the model was trained on: no patient's image ever travels with a model.
    for data in smears.golden(recipe.export.golden_images, size, recipe.seed):
        pixels = images.resize(images.decode(data), size)[None]
        probabilities, unlike = session.run(["probabilities", "unlikeness"], {"image": pixels})
        golden.append(
            {
                "image": base64.b64encode(data).decode(),
                "probabilities": [round(float(p), 6) for p in probabilities[0]],
                "unlikeness": round(float(unlike[0]), 4),
            }
        )
    promise = contract.Contract.model_validate(facts | {"golden": golden})
    onnx.helper.set_model_props(proto, {contract.METADATA_KEY: promise.model_dump_json()} | metadata(index))
    proto.producer_name = "leukdetect"
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _parity(whole: keras.Model, temperature: float, pixels: np.ndarray) -> dict[str, float]:
    _, test = prepare.read("test")
    logits, _ = calibrate.forward(whole, pixels, test.index.to_numpy())
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
