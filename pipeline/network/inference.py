"""Runs the trained network in Keras: calibration is fitted to its outputs, and ONNX compared with them."""

import keras
import numpy as np
import tensorflow as tf

from pipeline.network import classifier
from pipeline.stage import progress

BATCH = 32


def forward(whole: keras.Model, pixels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, C] and `classifier.low_level` features [n, L] of rows of prepared images."""
    outputs = {"logits": whole.get_layer("logits").output, "low_level": classifier.low_level(whole)}
    found = _run(whole, outputs, pixels, rows)
    return found["logits"], found["low_level"]


def low_level(whole: keras.Model, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The second of `forward` alone, for which the network's first layers are enough."""
    return _run(whole, {"low_level": classifier.low_level(whole)}, pixels, rows)["low_level"]


def _run(
    whole: keras.Model, outputs: dict[str, keras.KerasTensor], pixels: np.ndarray, rows: np.ndarray
) -> dict[str, np.ndarray]:
    trunk = tf.function(keras.Model(whole.input, outputs), reduce_retracing=True)
    parts = [
        {name: tensor.numpy() for name, tensor in trunk(pixels[rows[start : start + BATCH]], training=False).items()}
        for start in progress(range(0, len(rows), BATCH), "forward", unit="batch")
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}
