"""What MLflow logs as the model's code: it stands alone, with nothing of this project imported.

    model = mlflow.pyfunc.load_model("models:/leukdetect@champion")
    probabilities = model.predict(images)  # uint8 [N, S, S, 3] RGB -> float32 [N, C]

The class names in order, how to decode and resize, and the thresholds are in the ONNX file's metadata.
"""

from typing import Any

import mlflow
import numpy as np
import onnxruntime
from mlflow.pyfunc import PythonModel

BATCH = 32  # images; all at once would need gigabytes for the activations of a few hundred


class LeukDetect(PythonModel):
    """Calibrated probabilities from plain onnxruntime."""

    def load_context(self, context: Any) -> None:
        """Opens the FP32 graph."""
        self.session = onnxruntime.InferenceSession(context.artifacts["onnx"], providers=["CPUExecutionProvider"])

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Probabilities float32 [N, C], classes in the order of the file's contract."""
        starts = range(0, max(len(model_input), 1), BATCH)
        batches = [np.ascontiguousarray(model_input[start : start + BATCH]) for start in starts]
        return np.concatenate([self.session.run(["probabilities"], {"image": batch})[0] for batch in batches])


mlflow.models.set_model(LeukDetect())
