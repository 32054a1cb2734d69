"""TensorFlow functions of images as ONNX graphs."""

import os
from collections.abc import Callable

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from onnx import numpy_helper

# Otherwise tf2onnx copies the whole graph before each of its optimisations and swallows their errors.
os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"

OPSET = 18  # the newest that tf2onnx writes


def to_onnx(
    function: Callable[[tf.Tensor], dict[str, tf.Tensor]], size: int, weights: list[keras.Variable]
) -> onnx.ModelProto:
    """Converts a function of `image`, uint8 [N, size, size, 3], to named tensors; checked by onnx.checker.

    `weights` are all that the function uses. They are converted as inputs and made constants afterwards, since
    TensorFlow and tf2onnx copy each constant some forty times, which took 4 GiB for a ResNet-50 and most of the time.
    The function may hold no `Normalization` layer: its constants are no weights.
    """
    names = [f"weight_{i}" for i in range(len(weights))]
    signature = [
        tf.TensorSpec([None, size, size, 3], tf.uint8, name="image"),
        *(tf.TensorSpec(w.shape, w.dtype, name=name) for name, w in zip(names, weights, strict=True)),
    ]

    def of_weights(image: tf.Tensor, *values: tf.Tensor) -> dict[str, tf.Tensor]:
        with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
            return function(image)

    proto, _ = tf2onnx.convert.from_function(
        tf.function(of_weights, input_signature=signature), input_signature=signature, opset=OPSET
    )
    _bind(proto.graph, {name: np.asarray(w) for name, w in zip(names, weights, strict=True)})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _bind(graph: onnx.GraphProto, values: dict[str, np.ndarray]) -> None:
    """Replaces inputs by constants, already transposed where the graph transposes them for ONNX's convolutions."""
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in values]:
        axes = next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
        values[node.output[0]] = values[node.input[0]].transpose(axes)
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items() if name in read
    )
    kept = [entry for entry in graph.input if entry.name not in values]
    del graph.input[:]
    graph.input.extend(kept)
