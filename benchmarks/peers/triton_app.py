"""Triton, by nvidia-pytriton. `python triton_app.py`"""

import base64
import os
import signal
import sys

import numpy as np
from classifier import classify, open_session, pixels, size
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that Triton removes its folders in /tmp
    session = open_session()

    @batch
    def infer(image: np.ndarray) -> dict:
        files = [base64.b64decode(row[0]) for row in image]
        batch = np.stack([pixels(file, size(session)) for file in files])
        return {"probabilities": np.array(classify(session, batch), np.float32)}

    config = TritonConfig(
        http_port=int(os.environ["PORT"]), http_address="127.0.0.1", allow_grpc=False, allow_metrics=False
    )
    batches = ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=1000))
    image = Tensor(name="image", dtype=bytes, shape=(1,))
    probabilities = Tensor(name="probabilities", dtype=np.float32, shape=(-1,))
    with Triton(config=config) as server:
        server.bind("leukdetect", infer, inputs=[image], outputs=[probabilities], config=batches)
        server.serve()


if __name__ == "__main__":
    main()
