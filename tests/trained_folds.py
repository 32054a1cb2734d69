"""What `prepare` and `pipeline.fold` leave in the current folder, of tiny models: for tests of those who read it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import yaml

from leukdetect.contract import OUTPUTS
from pipeline.data import folds
from pipeline.model_file import similar_index
from tests import tiny_model
from tests.project import ROOT

SEED = 88


def recipe(k: int, seeds: Sequence[int] = (SEED,)) -> None:
    """Writes params.yaml: the demo's, with k folds."""
    params = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    params["estimate"] = {"folds": list(range(k)), "seeds": list(seeds)}
    params["prepare"]["image_size"] = tiny_model.SIZE
    params["evaluate"]["bootstrap"] = 100
    Path("params.yaml").write_text(yaml.safe_dump(params))


def write(split: pd.DataFrame, pixels: np.ndarray, fold: np.ndarray, biases: Sequence[float], seed: int = SEED) -> None:
    """Rows of split.csv, each held out by one fold, int [N], whose tiny model has a bias of its own."""
    sides = {str(one): np.where(fold == one, "test", "train") for one in range(len(biases))}
    folds.SIDES.parent.mkdir(parents=True, exist_ok=True)
    split[["sha256", "class", "group"]].assign(**sides).to_csv(folds.SIDES, index=False)
    for one, bias in enumerate(biases):
        train = split[fold != one]
        for precision in ("fp32", "int8"):
            path = folds.folder(one, seed) / f"{precision}.onnx"
            tiny_model.write(path, precision=precision, bias=bias)
            session = onnxruntime.InferenceSession(path)
            (seen,) = session.run(["embedding"], {"image": pixels[train.index]})
            index = similar_index.fit(seen, train["label"].to_numpy(), train["sha256"].tolist(), None)
            tiny_model.write(path, precision=precision, bias=bias, index=index)
            said = session.run(OUTPUTS, {"image": pixels[fold == one]})
            arrays = dict(zip(OUTPUTS, said, strict=True)) | {"rows": np.flatnonzero(fold == one), "seen": seen}
            np.savez(path.with_suffix(".npz"), allow_pickle=False, **arrays)
