"""BentoML. `bentoml serve bentoml_service:Classifier`"""

import bentoml
import numpy as np
from classifier import classify, open_session, size
from PIL import Image


@bentoml.service(workers=1)
class Classifier:
    def __init__(self) -> None:
        self.session = open_session()
        self.side = size(self.session)

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=2000)
    def predict(self, images: list[Image.Image]) -> list[list[float]]:
        shape = (self.side, self.side)
        batch = [np.asarray(image.convert("RGB").resize(shape, Image.Resampling.BILINEAR)) for image in images]
        return classify(self.session, np.stack(batch))
