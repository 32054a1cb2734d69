"""What MLflow logs as the model's code; `leukdetect` travels with it.

    model = mlflow.pyfunc.load_model("models:/leukdetect@champion")
    answers = model.predict(images)  # uint8 [N, H, W, 3] RGB of any size -> N dicts, each as `POST /predict` answers

To `mlflow models serve`: {"inputs": images}, each image nested lists of 0..255, or a file's bytes in base64.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from leukdetect import answer, decoding, model_file
from leukdetect.images import ImageError
from leukdetect.registry import Located


class LeukDetect(PythonModel):
    """The FP32 file's answers."""

    def load_context(self, context: Any) -> None:
        """Opens the file, and runs its golden set."""
        self.model = model_file.load(Located(Path(context.artifacts["onnx"])))

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """A class, probabilities, a decision and its reasons for each image.

        Raises MlflowException: one is no image; the message says which and what is wanted.
        """
        return [self._answer(number, each) for number, each in enumerate(model_input)]

    def _answer(self, number: int, image: Any) -> dict[str, Any]:
        try:
            found = self.model.predict(_source(image)).model_dump()
        except ImageError as error:
            raise MlflowException.invalid_parameter_value(f"image {number}: {error}") from error
        return {"class": found.pop("key"), **found, "disclaimer": answer.disclaimer(self.model.contract)}


def _source(image: Any) -> decoding.Source:
    """What came as JSON or in an array of objects, as what it stands for."""
    if isinstance(image, str):
        try:
            return base64.b64decode("".join(image.split()), validate=True)  # `base64 FILE` breaks lines
        except binascii.Error as error:
            raise ImageError("the text is not base64, as an image file's bytes must be") from error
    if isinstance(image, bytes):
        return image
    try:
        pixels = (
            np.array(image.tolist()) if isinstance(image, np.ndarray) and image.dtype == object else np.asarray(image)
        )
    except ValueError as error:
        raise ImageError("its rows differ in length") from error
    whole = np.issubdtype(pixels.dtype, np.integer) and pixels.size and pixels.min() >= 0 and pixels.max() <= 255
    return pixels.astype(np.uint8) if whole else pixels  # JSON knows no uint8


mlflow.models.set_model(LeukDetect())
