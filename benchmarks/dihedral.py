"""What test-time augmentation would gain: answers averaged over the eight symmetries of the square (D4).

Flips and quarter turns; eight times the computing. Nothing is trained. Probabilities are averaged, and a temperature
for the averages is fitted on the validation split, as `pipeline.calibrate` does for single answers.

Reads:  models/leukdetect.onnx, data/prepared/, params.yaml
Run:    python -m benchmarks.dihedral     (a minute for the demo)
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import softmax

from pipeline import params, stage
from pipeline.data import prepared
from pipeline.evaluation import metrics
from pipeline.model_file import calibration, onnx_model
from pipeline.stage import Problem

METRICS = ("balanced accuracy", "ECE", "Brier", "NLL")


def main() -> None:
    recipe, model = params.load(), onnx_model.load(onnx_model.FP32)
    if recipe.estimate.folds:
        raise Problem("with estimate.folds in params.yaml the model has learnt from every image: set it to [] here")
    temperature = None
    lines = [f"| | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
    for split in ("val", "test"):
        images, rows = prepared.read(split)
        labels = rows["label"].to_numpy()
        answers = [model.predict(each)["probabilities"] for each in symmetries(images[rows.index])]
        logits = np.log(np.maximum(np.mean(answers, axis=0), 1e-12))
        temperature = temperature or calibration.fit_temperature(logits, labels)
        weights = metrics.group_weights(labels, rows["group"].to_numpy(), recipe.evaluate.bootstrap, recipe.seed)
        single = _measure(answers[0], labels, weights)
        averaged = _measure(softmax(logits / temperature, axis=1), labels, weights)
        changes = [after - before for before, after in zip(single, averaged, strict=True)]
        lines += [
            _row(f"{split}: one answer", single),
            _row(f"{split}: mean of eight, temperature {temperature:.2f}", averaged),
            _row(f"{split}: change", changes),
        ]
    print("\n".join(lines))


def symmetries(images: np.ndarray) -> Iterator[np.ndarray]:
    """The eight flips and quarter turns of [N, S, S, 3]; the unchanged images come first."""
    for quarters in range(4):
        turned = np.rot90(images, quarters, axes=(1, 2))
        yield np.ascontiguousarray(turned)
        yield np.ascontiguousarray(turned[:, :, ::-1])


def _measure(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """`METRICS` of probabilities [N, C] in each resample: [R] each."""
    predicted = probabilities.argmax(1)
    return [
        metrics.balanced_accuracy(labels, predicted, weights),
        metrics.ece(probabilities.max(1), predicted == labels, weights),
        metrics.mean(metrics.brier(probabilities, labels), weights),
        metrics.mean(metrics.nll(probabilities, labels), weights),
    ]


def _row(name: str, values: list[np.ndarray]) -> str:
    cells = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in map(metrics.estimate, values)]
    return f"| {' | '.join([name, *cells])} |"


if __name__ == "__main__":
    stage.guard(main)
