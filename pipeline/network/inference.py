"""Runs the trained network in Keras: calibration is fitted to its outputs, and ONNX compared with them."""

import keras
import numpy as np
import tensorflow as tf

from pipeline.network import classifier
from pipeline.stage import progress


def forward(whole: keras.Model, pixels: np.ndarray, rows: np.ndarray, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, C] and `classifier.low_level` features [n, L] of rows of prepared images."""
    logits, features = _run(whole, [whole.get_layer("logits").output, classifier.low_level(whole)], pixels, rows, batch)
    return logits, features


def low_level(whole: keras.Model, pixels: np.ndarray, rows: np.ndarray, batch: int = 32) -> np.ndarray:
    """The second of `forward` alone, for which the network's first layers are enough."""
    return _run(whole, [classifier.low_level(whole)], pixels, rows, batch)[0]


def _run(
    whole: keras.Model, outputs: list[keras.KerasTensor], pixels: np.ndarray, rows: np.ndarray, batch: int
) -> list[np.ndarray]:
    trunk = tf.function(keras.Model(whole.input, outputs), reduce_retracing=True)
    parts = [
        [tensor.numpy() for tensor in trunk(pixels[rows[start : start + batch]], training=False)]
        for start in progress(range(0, len(rows), batch), "forward", unit="batch")
    ]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
