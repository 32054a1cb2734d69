"""Whether the FP32 file answers as Keras does, which made it: reports/parity.json."""

from pathlib import Path

import keras
import numpy as np
from scipy.special import softmax

from pipeline import stage
from pipeline.data import prepared
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.network import inference
from pipeline.stage import Problem

JSON = Path("reports/parity.json")
MOST = 2000  # images
LIMIT = 1e-4  # largest difference in a probability between Keras and ONNX


def check(whole: keras.Model, temperature: float, pixels: np.ndarray) -> None:
    """Compares them on images that the estimate is of, uint8 [N, S, S, 3] being all that are prepared.

    Raises Problem, and removes both files, if they differ by more than LIMIT, or in a class.
    """
    rows = prepared.held_out(prepared.read()[1]).iloc[:MOST]
    logits, _ = inference.forward(whole, pixels, rows.index.to_numpy())
    keras_probabilities = softmax(logits / temperature, axis=1)
    ours = onnx_model.load(FP32).predict(pixels[rows.index])["probabilities"]
    apart = float(np.abs(ours - keras_probabilities).max())
    otherwise = int((ours.argmax(1) != keras_probabilities.argmax(1)).sum())
    stage.write_json(JSON, {"images": len(rows), "max_difference": apart, "argmax_differs": otherwise})
    if apart > LIMIT or otherwise:
        FP32.unlink()
        INT8.unlink()
        raise Problem(
            f"the ONNX file differs from Keras on held-out images: by up to {apart:.2g} in a probability (allowed "
            f"{LIMIT:g}), another class on {otherwise} images. It was removed; the conversion is at fault: "
            "compare the versions of tensorflow and tf2onnx with requirements/."
        )
    print(f"ONNX equals Keras on {len(rows)} images: at most {apart:.2g} apart, same class")
