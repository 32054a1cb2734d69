"""Puts a model file together: the graph, its contract with a golden set, and the index of similar cases."""

import base64
from pathlib import Path

import onnx
import onnxruntime

from leukdetect import contract, images, similar
from leukdetect.similar import Index
from pipeline.data import smears
from pipeline.model_file.onnx_model import answers
from pipeline.params import Params


def save(
    proto: onnx.ModelProto,
    session: onnxruntime.InferenceSession,
    path: Path,
    recipe: Params,
    facts: dict[str, object],
    index: Index,
) -> None:
    """Writes the file: `session` of this graph answers the golden set, `facts` are the contract's other fields."""
    size = recipe.prepare.image_size
    golden = []
    # Rendered images, whatever the model was trained on: no patient's image ever travels with a model.
    for data in smears.golden(recipe.export.golden_images, size, recipe.seed):
        pixels = images.sized(data, size)[None]
        answer = answers(session, pixels, ("probabilities", "unlikeness"))
        golden.append(
            {
                "image": base64.b64encode(data).decode(),
                "probabilities": [round(float(p), 6) for p in answer["probabilities"][0]],
                "unlikeness": round(float(answer["unlikeness"][0]), 4),
            }
        )
    promise = contract.Contract.model_validate(facts | {"golden": golden})
    onnx.helper.set_model_props(proto, {contract.METADATA_KEY: promise.model_dump_json()} | similar.metadata(index))
    proto.producer_name = "leukdetect"
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
