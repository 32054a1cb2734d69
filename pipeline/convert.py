"""TensorFlow functions of images as ONNX graphs."""

import os
from collections.abc import Callable

import onnx
import tensorflow as tf
import tf2onnx

# Otherwise tf2onnx copies the whole graph before each of its optimisations and swallows their errors: 8.6 GiB, not 4.7.
os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"

OPSET = 18  # the newest that tf2onnx writes


def to_onnx(function: Callable[[tf.Tensor], dict[str, tf.Tensor]], size: int) -> onnx.ModelProto:
    """Converts a function of `image`, uint8 [N, size, size, 3], to named tensors; checked by onnx.checker.

    A `Normalization` layer may not be in it: its constants would become inputs of the ONNX graph.
    """
    signature = [tf.TensorSpec([None, size, size, 3], tf.uint8, name="image")]
    proto, _ = tf2onnx.convert.from_function(
        tf.function(function, input_signature=signature), input_signature=signature, opset=OPSET
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto
