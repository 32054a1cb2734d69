"""A base of a few dozen weights in a ResNet-50's place: pooling and maps are asked the same of any base."""

from typing import Any

import keras
import numpy as np

from pipeline.network.backbones import Backbone

SQUARE = 32  # pixels a side of what becomes a position of the last maps: 7 × 7 at 224 px, as of a ResNet-50

SPACE = {  # of unlikeness, which no pooling has a part in
    "means": np.zeros((2, 3), np.float32),
    "directions": np.eye(3, 1, dtype=np.float32),
    "variances": np.ones(1, np.float32),
    "rest": np.ones((), np.float32),
    "scale": np.ones((), np.float32),
}


def _make(include_top: bool, weights: str | None, **where: Any) -> keras.Model:
    """Mean colours of squares, mixed twice."""
    image = where.get("input_tensor")
    if image is None:
        image = keras.Input(where["input_shape"])
    x = keras.layers.AveragePooling2D(SQUARE // 2, name="toy_pool")(image)
    x = keras.layers.Conv2D(4, 1, activation="relu", name="toy_conv_1")(x)
    x = keras.layers.MaxPooling2D(2, name="toy_halved")(x)
    x = keras.layers.Conv2D(8, 1, name="toy_conv_2")(x)
    return keras.Model(keras.utils.get_source_inputs(image), keras.layers.ReLU(name="toy_out")(x))


TOY = Backbone(_make, (0, 0, 0), (255, 255, 255), "toy_pool")
CUT = "toy_conv_2"  # fine_tune.trainable_from


def tells_colours(whole: keras.Model) -> None:
    """Sets the base's weights so that the last maps' first channels are a square's red, green and blue, 0 to 1."""
    for name in ("toy_conv_1", "toy_conv_2"):
        layer = whole.get_layer(name)
        kernel, bias = (0 * values for values in layer.get_weights())
        kernel[0, 0, range(3), range(3)] = 1
        layer.set_weights([kernel, bias])


def tells_classes(whole: keras.Model, scale: float = 10) -> None:
    """Sets the head's weights so that class c's logit is `scale` times the pooled channel c, for classes 0 to 2."""
    for name in ("head_dense_1", "head_dense_2", "logits"):
        layer = whole.get_layer(name)
        kernel, bias = (0 * values for values in layer.get_weights())
        kernel[range(kernel.shape[1])[:3], range(kernel.shape[1])[:3]] = scale if name == "logits" else 1
        layer.set_weights([kernel, bias])
