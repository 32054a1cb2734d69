"""A new model beside the present champion, on the same test images."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from leukdetect import images
from pipeline import params, stage
from pipeline.data import prepared
from pipeline.data.source import RAW
from pipeline.evaluation import metrics as measures
from pipeline.evaluation.compare import sentence
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, OnnxModel
from pipeline.registry import tracking, versions


def compare(
    recipe: params.Params, model: OnnxModel, version: str, champion: str | None
) -> tuple[measures.Estimate | None, str]:
    """How much better in balanced accuracy than the champion, each at its own image size, and a sentence on it.

    A champion that was trained on another split may have seen some of these images, and then looks better than
    it is: the comparison errs on the strict side.

    Returns:
        None in place of the difference where the two cannot be compared.
    """
    if champion is None:
        return None, "There is no champion to compare with."
    if champion == version:
        return None, "It is the champion: nothing to compare it with."
    if versions.is_of(tracking.client(), recipe.register_.name, champion, stage.sha256(model.path)):
        return None, f"It is the very file of champion version {champion}, whose files are gone: nothing to compare."
    with tempfile.TemporaryDirectory() as folder:
        other = onnx_model.load(versions.download(recipe.register_.name, champion, Path(folder), FP32.name))
    keys, other_keys = [[c.key for c in m.contract.classes] for m in (model, other)]
    if keys != other_keys:
        return None, f"Not compared with champion version {champion}: its classes are {', '.join(other_keys)}."
    pixels, rows = prepared.read("test")
    new, old = [
        m.predict(_at_size(pixels, rows, m.contract.decode.size))["probabilities"].argmax(1) for m in (model, other)
    ]
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    weights = measures.group_weights(labels, groups, recipe.evaluate.bootstrap, recipe.seed)
    test = measures.mcnemar(new == labels, old == labels)
    return measures.paired_bootstrap(labels, new, old, weights), (
        f"Compared with champion version {champion} on the same test images. "
        + sentence(test, f"version {version}", f"version {champion}")
    )


def _at_size(pixels: np.ndarray, rows: pd.DataFrame, size: int) -> np.ndarray:
    if pixels.shape[1] == size:
        return pixels[rows.index]
    files = stage.progress([RAW / path for path in rows["path"]], f"decode at {size} px")
    return np.stack([images.resize(images.decode(file.read_bytes()), size) for file in files])
