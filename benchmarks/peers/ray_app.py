"""Ray Serve. `python ray_app.py`"""

import os

import numpy as np
import ray
from classifier import classify, open_session, pixels, size
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=100)
class Classifier:
    def __init__(self) -> None:
        self.session = open_session()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0)
    async def classify(self, batch: list[np.ndarray]) -> list[list[float]]:
        return classify(self.session, np.stack(batch))

    async def __call__(self, request: Request) -> dict:
        form = await request.form()
        image = pixels(await form["file"].read(), size(self.session))
        return {"probabilities": await self.classify(image)}


if __name__ == "__main__":
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Classifier.bind(), blocking=True)
