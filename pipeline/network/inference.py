"""Runs the trained network in Keras: calibration is fitted to its outputs, and ONNX compared with them."""

import keras
import numpy as np
import tensorflow as tf

from pipeline.network import classifier
from pipeline.stage import progress


def forward(whole: keras.Model, pixels: np.ndarray, rows: np.ndarray, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, C] and `classifier.low_level` features [n, L] of rows of prepared images."""
    outputs = [whole.get_layer("logits").output, classifier.low_level(whole)]
    trunk = tf.function(keras.Model(whole.input, outputs), reduce_retracing=True)
    parts = [
        [tensor.numpy() for tensor in trunk(pixels[rows[start : start + batch]], training=False)]
        for start in progress(range(0, len(rows), batch), "forward", unit="batch")
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
