"""What a model file would say of images that it did not learn from: what its limits and references are fitted to."""

import numpy as np
import onnx
import pandas as pd

from leukdetect.contract import OBSERVED
from leukdetect.runtime import cpus, open_session
from pipeline.model_file import onnx_model, out_of_fold, quantise
from pipeline.model_file.drift_reference import Folds
from pipeline.params import Params

Answered = tuple[dict[str, np.ndarray], Folds | None]  # `OBSERVED`, and of which fold's model each is


def answers(
    recipe: Params,
    rows: pd.DataFrame,
    files: dict[str, onnx.ModelProto],
    temperature: float,
    scale: float,
    pixels: np.ndarray,
) -> dict[str, Answered]:
    """Each file's answers to the rows: its own to the validation split, or with folds those of the models that did not
    see them, at this model's temperature.

    INT8's unlikeness is scaled in its graph here, by what these images' distances are in INT8.

    Args:
        rows: of split.csv; with folds all of them.
        files: by precision, with temperature and scale of the unlikeness inside.
    """
    found: dict[str, Answered] = {}
    for precision, made in files.items():
        if recipe.estimate.folds:
            said = out_of_fold.read(recipe, rows, precision)
            limit = float(np.quantile(said.outputs["unlikeness"], recipe.calibrate.unlikeness_quantile))
            if precision == "int8":
                quantise.rescale_unlikeness(made, limit / scale)
            session = open_session(made.SerializeToString(), 1)
            seen = np.random.default_rng(recipe.seed).permutation(rows.index)[: len(said.seen[0])]
            own = onnx_model.answers(session, pixels[seen], ("embedding",), onnx_model.BATCH, threads=cpus())
            outputs = said.calibrated(temperature, limit).outputs
            found[precision] = {name: outputs[name] for name in OBSERVED}, Folds(said.fold, said.seen, own["embedding"])
        else:
            if precision == "int8":
                session = open_session(made.SerializeToString())
                distances = onnx_model.answers(session, pixels[rows.index], ("unlikeness",))["unlikeness"]
                quantise.rescale_unlikeness(made, float(np.quantile(distances, recipe.calibrate.unlikeness_quantile)))
            session = open_session(made.SerializeToString())
            found[precision] = onnx_model.answers(session, pixels[rows.index], OBSERVED), None
    return found
