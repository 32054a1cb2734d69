"""Whether the answers can be believed: calibration, the operating point, abstention, prediction sets, explanations.

Each section is a small module; `pipeline.evaluate` calls `measure` and draws `figures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.evaluation import abstention, calibration, metrics, out_of_distribution, prediction_sets
from pipeline.model_file.onnx_model import OnnxModel
from pipeline.params import Params


@dataclass(frozen=True, eq=False)
class Sample:
    """The test split: N images, their classes and groups."""

    pixels: np.ndarray  # uint8 [N, S, S, 3]
    labels: np.ndarray  # int [N]
    paths: Sequence[str]  # below data/raw
    weights: np.ndarray  # [1 + R, N], of metrics.group_weights


def sample(images: np.ndarray, rows: Any, recipe: Params) -> Sample:
    """Rows of split.csv (a frame whose index says where each image stands in `images`) as a sample."""
    labels = rows["label"].to_numpy()
    weights = metrics.group_weights(labels, rows["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
    return Sample(images[rows.index], labels, rows["path"].tolist(), weights)


def measure(fp32: OnnxModel, int8: OnnxModel, test: Sample, recipe: Params) -> dict[str, Any]:
    """Sections of reports/metrics.json, by name."""
    contract = fp32.contract
    probabilities = fp32.predict(test.pixels)["probabilities"].astype(np.float64)
    malignant = np.array([c.malignant for c in contract.classes])
    others = out_of_distribution.kinds(test.pixels, recipe.seed)
    if recipe.evaluate.other_laboratory:
        size = contract.decode.size
        others["another laboratory"] = out_of_distribution.folder(Path(recipe.evaluate.other_laboratory), size)
    return {
        "calibration": calibration.calibration(probabilities, contract.temperature, test.labels, test.weights),
        "operating_point": calibration.operating_point(
            probabilities[:, malignant].sum(1),
            malignant[test.labels],
            contract.thresholds.malignant,
            recipe.evaluate.prevalence,
            test.weights,
        ),
        "abstention": {
            model.contract.precision: abstention.measure(model, test.pixels, test.labels, test.weights, others)
            for model in (fp32, int8)
        },
        "prediction_sets": {
            model.contract.precision: prediction_sets.coverage(
                model.predict(test.pixels)["probabilities"], test.labels, model.contract, test.weights
            )
            for model in (fp32, int8)
        },
    }


def figures(fp32: OnnxModel, test: Sample, measured: dict[str, Any]) -> dict[str, Figure]:
    """The sections' figures by file name, to be drawn within `plots.STYLE`."""
    probabilities = fp32.predict(test.pixels)["probabilities"].astype(np.float64)
    return {
        "calibration": calibration.figure(
            probabilities, fp32.contract.temperature, test.labels, measured["calibration"]
        ),
        "abstention": abstention.figure(fp32, test.pixels, test.labels, measured["abstention"]["fp32"]),
    }
