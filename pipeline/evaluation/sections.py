"""Whether the answers can be believed: calibration, the operating point, abstention, prediction sets, explanations.

Each section is a small module; `pipeline.evaluate` calls `measure` and draws `figures`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import abstention, calibration, out_of_distribution, prediction_sets
from pipeline.evaluation.answers import Answers, Sample, answer, quality
from pipeline.model_file.onnx_model import OnnxModel
from pipeline.params import Params


def measure(
    fp32: OnnxModel, int8: OnnxModel, test: Sample, answers: dict[str, Answers], recipe: Params
) -> dict[str, Any]:
    """Sections of reports/metrics.json, by name. `answers`: of both model files, by precision."""
    contract, own = fp32.contract, answers["fp32"]
    others = out_of_distribution.kinds(test.pixels, recipe.seed)
    if recipe.evaluate.other_laboratory:
        size = contract.decode.size
        others["another laboratory"] = out_of_distribution.folder(Path(recipe.evaluate.other_laboratory), size)
    looks = {kind: quality(pixels) for kind, pixels in others.items()}
    return {
        "calibration": calibration.calibration(own.probabilities, contract.temperature, test.labels, test.weights),
        "operating_point": calibration.operating_point(
            own.p_malignant,
            np.array([c.malignant for c in contract.classes])[test.labels],
            contract.thresholds.malignant,
            recipe.evaluate.prevalence,
            test.weights,
        ),
        "abstention": {
            model.contract.precision: abstention.measure(
                answers[model.contract.precision],
                test.labels,
                test.weights,
                {kind: answer(model, pixels, looks[kind]) for kind, pixels in others.items()},
            )
            for model in (fp32, int8)
        },
        "prediction_sets": {
            model.contract.precision: prediction_sets.coverage(
                answers[model.contract.precision].probabilities, test.labels, model.contract, test.weights
            )
            for model in (fp32, int8)
        },
    }
