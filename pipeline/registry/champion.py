"""A new model beside the present champion, on the same images, which neither of them learnt from."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient

from leukdetect import apart
from leukdetect.contract import Decode
from pipeline import params, stage
from pipeline.data import prepared
from pipeline.data.source import RAW
from pipeline.evaluation import compare as predictions
from pipeline.evaluation import metrics as measures
from pipeline.evaluation.compare import sentence
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, OnnxModel
from pipeline.registry import versions
from pipeline.registry.versions import REPORTS, SHA256_TAG
from pipeline.stage import Problem


def load(client: MlflowClient, name: str, model: OnnxModel) -> tuple[str | None, OnnxModel | None]:
    """The champion's version and FP32 file; no file where it is this very one, no version where there is no champion.

    Raises Problem: it has other classes than the model: a name is one label set's, and clients know its classes.
    """
    registered = client.search_registered_models(f"name = '{name}'")
    champion = versions.aliases(client, name).get("champion") if registered else None
    if champion is None:
        return None, None
    if client.get_model_version(name, champion).tags.get(SHA256_TAG) == stage.sha256(model.path):
        return champion, None
    with tempfile.TemporaryDirectory() as folder:
        other = onnx_model.load(versions.download(name, champion, Path(folder), FP32.name))
    keys, others = ([each.key for each in m.contract.classes] for m in (model, other))
    if keys != others:
        raise Problem(
            f"the champion of {name}, version {champion}, has the classes {', '.join(others)}, and this model "
            f"{', '.join(keys)}. Nothing was registered: choose another register.name in params.yaml"
        )
    return champion, other


def compare(
    client: MlflowClient,
    recipe: params.Params,
    model: OnnxModel,
    version: str,
    champion: str | None,
    other: OnnxModel | None,
) -> tuple[measures.Estimate | str | None, str]:
    """How much better in balanced accuracy than the champion, each at its own image size, and a sentence on it.

    A champion that was trained on another split may have seen some of these images, and then looks better than
    it is: the comparison errs on the strict side. Where either learnt from all images, what each said out of fold, or
    of its test split, is compared on the images that both have.

    Args:
        champion, other: its version and file, of `load`.

    Returns:
        In place of the difference: None where there is no other model to compare with; why, where there is one and it
        cannot be done.
    """
    if champion is None:
        return None, "There is no champion to compare with."
    if champion == version:
        return None, "It is the champion: nothing to compare it with."
    if other is None:
        return None, f"It is the very file of champion version {champion}, whose files are gone: nothing to compare."
    pixels, rows = prepared.read("test")
    run = client.get_model_version(recipe.register_.name, champion).run_id
    if rows.empty or (run and client.get_run(run).data.params.get("estimate.folds", "[]") != "[]"):
        return _by_predictions(client, recipe, version, champion, run)
    new, old = [m.predict(_as_seen(pixels, rows, m.contract.decode))["probabilities"].argmax(1) for m in (model, other)]
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    weights = measures.group_weights(labels, groups, recipe.evaluate.bootstrap, recipe.seed)
    test = measures.mcnemar(new == labels, old == labels)
    return measures.paired_bootstrap(labels, new, old, weights), (
        f"Compared with champion version {champion} on the same test images. "
        + sentence(test, f"version {version}", f"version {champion}")
    )


def _by_predictions(
    client: MlflowClient, recipe: params.Params, version: str, champion: str, run: str | None
) -> tuple[measures.Estimate | str, str]:
    """By reports/predictions.csv of both, which hold only images that the model which answered did not learn from."""
    name, against = "predictions.csv", f"champion version {champion}"

    def unknown(why: str) -> tuple[str, str]:
        return why, f"Not compared with {against}: {why}."

    ours = predictions.read(REPORTS / name)
    if not run or run == client.get_model_version(recipe.register_.name, version).run_id:
        return unknown(f"{against} has no run of its own")
    if name not in {file.path for file in client.list_artifacts(run)}:
        return unknown(f"the run of {against}, {run}, has no {name}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = predictions.read(Path(client.download_artifacts(run, name, folder)))
        except Problem as error:
            return unknown(str(error))
    both = ours.join(theirs["predicted"], rsuffix="_b", how="inner")
    if both.empty:
        return unknown(f"{against} was measured on no image that this one was measured on")
    labels, groups, new, old = (both[column].to_numpy(str) for column in ("class", "group", "predicted", "predicted_b"))
    weights = measures.group_weights(labels, groups, recipe.evaluate.bootstrap, recipe.seed)
    test = measures.mcnemar(new == labels, old == labels)
    return measures.paired_bootstrap(labels, new, old, weights), (
        f"Compared with {against} by what each said, while it had not learnt from them, of the {len(both)} images in "
        f"{len(set(groups))} groups that both were measured on. "
        + sentence(test, f"version {version}", f"version {champion}")
    )


def _as_seen(pixels: np.ndarray, rows: pd.DataFrame, how: Decode) -> np.ndarray:
    if pixels.shape[1] == how.size and how.scaled:  # as the prepared ones are
        return pixels[rows.index]
    files = stage.progress([RAW / path for path in rows["path"]], f"decode at {how.size} px")
    return np.stack([apart.sized(file.read_bytes(), how.size, how.scaled) for file in files])
