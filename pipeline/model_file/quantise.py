"""Quantises a graph of the contract to INT8."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.model_file import onnx_model


class _OneByOne(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray):
        self.rows = iter(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self.rows, None)
        return None if row is None else {"image": row[None]}


def quantise(proto: onnx.ModelProto, pixels: np.ndarray) -> onnx.ModelProto:
    """INT8 of the convolutions and what lies between them; the head, attention, the distance and the maps stay FP32.

    The ranges of activations are those on training images, uint8 [n, S, S, 3]. U8S8, per channel, weights in 7 bits:
    without `reduce_range`, AVX2's multiply saturates and costs points of accuracy
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(proto, plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        prepared = onnx.load(ready)
        base = onnx_model.base(prepared)
        quantize_static(
            ready,
            done,
            _OneByOne(pixels),
            quant_format=QuantFormat.QDQ,
            # With Relu listed, values are rounded once, after it; otherwise before it as well, in a step of its own.
            op_types_to_quantize=["Conv", "Add", "MaxPool", "Relu"],
            nodes_to_exclude=[node.name for node in prepared.graph.node if node.name not in base],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return onnx.load(done)


def rescale_unlikeness(proto: onnx.ModelProto, limit: float) -> None:
    """Rescales a quantised graph's `unlikeness`, in place, so that what was `limit` is 1.0, as it is in FP32.

    Rounding moves features out of the training images' subspace, so that every distance grows; with FP32's scale
    a third of ordinary images would be referred.
    """
    factor = np.float32(1 / limit)
    for node in proto.graph.node:
        node.output[:] = ["unlikeness_unscaled" if name == "unlikeness" else name for name in node.output]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor), "unlikeness_factor"))
    proto.graph.node.append(
        onnx.helper.make_node("Mul", ["unlikeness_unscaled", "unlikeness_factor"], ["unlikeness"], "rescale_unlikeness")
    )
