"""What every peer does with an image; as good as Pillow and onnxruntime allow, and the same for all."""

import io
import os

import numpy as np
import onnxruntime
from PIL import Image

MODEL = os.environ["MODEL"]
THREADS = int(os.environ.get("THREADS", len(os.sched_getaffinity(0))))


def open_session() -> onnxruntime.InferenceSession:
    """The model, with THREADS threads a run: a thread for every processor unless several sessions share them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def size(session: onnxruntime.InferenceSession) -> int:
    """The side of the model's input, in pixels."""
    return session.get_inputs()[0].shape[1]


def pixels(file: bytes, side: int) -> np.ndarray:
    """An image file to uint8 [side, side, 3]."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def classify(session: onnxruntime.InferenceSession, batch: np.ndarray) -> list[list[float]]:
    """Probabilities of uint8 [N, side, side, 3]: N lists of C."""
    return session.run(["probabilities"], {"image": batch})[0].tolist()
