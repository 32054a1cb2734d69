"""What every peer does with an image; as good as Pillow and the engine allow, and the same for all.

ENGINE=openvino: OpenVINO in place of onnxruntime, in float32 (where the processor has bfloat16 it would take that).
"""

import io
import os
from typing import Any

import numpy as np
from PIL import Image

MODEL = os.environ["MODEL"]
THREADS = int(os.environ.get("THREADS", len(os.sched_getaffinity(0))))
OPENVINO = os.environ.get("ENGINE") == "openvino"


def open_session() -> Any:
    """The model, with THREADS threads a run: a thread for every processor unless several sessions share them."""
    if OPENVINO:
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
        return openvino.compile_model(MODEL, "CPU", settings)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def size(session: Any) -> int:
    """The side of the model's input, in pixels."""
    return session.input().partial_shape[1].get_length() if OPENVINO else session.get_inputs()[0].shape[1]


def pixels(file: bytes, side: int) -> np.ndarray:
    """An image file to uint8 [side, side, 3]."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def classify(session: Any, batch: np.ndarray) -> list[list[float]]:
    """Probabilities of uint8 [N, side, side, 3]: N lists of C."""
    if OPENVINO:
        return session({"image": batch})["probabilities"].tolist()
    return session.run(["probabilities"], {"image": batch})[0].tolist()
