"""LitServe. `python litserve_app.py`"""

import os

import litserve
import numpy as np
from classifier import classify, open_session, pixels, size
from fastapi import Request


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = open_session()

    def decode_request(self, request: Request) -> np.ndarray:
        return pixels(request["file"].file.read(), size(self.session))

    def predict(self, batch: np.ndarray) -> list[list[float]]:
        return classify(self.session, batch)

    def encode_response(self, output: list[float]) -> dict:
        return {"probabilities": output}


if __name__ == "__main__":
    api = Classifier(max_batch_size=8, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)
