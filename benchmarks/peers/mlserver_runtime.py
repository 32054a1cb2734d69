"""MLServer: a custom inference runtime. `mlserver start`; benchmarks/servers.py has its settings."""

import numpy as np
from classifier import classify, open_session, pixels, size
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Classifier(MLModel):
    async def load(self) -> bool:
        self.session = open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        files = Base64Codec.decode_input(payload.inputs[0])
        batch = np.stack([pixels(file, size(self.session)) for file in files])
        output = NumpyCodec.encode_output("probabilities", np.array(classify(self.session, batch)))
        return InferenceResponse(model_name=self.name, outputs=[output])
