"""The answer to one image, as the API tells it."""

import base64
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leukdetect import decoding
from leukdetect.answer import Answer, answer, disclaimer
from leukdetect.decision import ReasonCode
from leukdetect.decoding import Decoded
from leukdetect.model_file import Model
from serving.inference.engine import Scores


class ModelIdentity(BaseModel):
    """Which model answered."""

    name: str
    version: str | None = Field(description="in the registry; null for a file that was named directly")
    alias: str | None
    file_sha256: str
    precision: Literal["fp32", "int8"]
    synthetic: bool = Field(description="trained on rendered images: its answers have no clinical meaning")


class ReasonAnswer(BaseModel):
    """One reason why an image is referred."""

    model_config = ConfigDict(from_attributes=True)

    code: ReasonCode
    detail: str


class ImageIdentity(BaseModel):
    """The file that was sent. It is not kept."""

    sha256: str
    format: str
    width: int
    height: int
    note: str | None = Field(
        None,
        exclude_if=lambda note: note is None,
        description="what of the file was left out, such as a broken colour profile; missing where nothing was",
    )


class Timings(BaseModel):
    """Milliseconds; each includes its own wait."""

    read: float = Field(description="the upload")
    decode: float
    queue: float = Field(description="waiting for the model")
    infer: float


class Prediction(Answer):
    """The answer to one image."""

    request_id: str
    reasons: list[ReasonAnswer] = Field(description="why it refers; empty for report")  # type: ignore[assignment]  # the library's, without `brief`
    image: ImageIdentity
    model: ModelIdentity
    timings_ms: Timings
    disclaimer: str


def identity(model: Model) -> ModelIdentity:
    """Says which model it is."""
    return ModelIdentity(
        name=model.contract.name,
        version=model.located.version,
        alias=model.located.alias,
        file_sha256=model.sha256,
        precision=model.contract.precision,
        synthetic=model.contract.provenance.synthetic,
    )


def prediction(request_id: str, model: Model, image: Decoded, scores: Scores, read: float, decode: float) -> Prediction:
    """Puts the answer together; `read` and `decode` in seconds."""
    return Prediction(
        request_id=request_id,
        **vars(answer(model.contract, image, scores.outputs)),
        image=ImageIdentity(sha256=image.sha256 or "", **vars(image.header)),
        model=identity(model),
        timings_ms=Timings(
            read=_ms(read), decode=_ms(decode), queue=_ms(scores.queue_seconds), infer=_ms(scores.infer_seconds)
        ),
        disclaimer=disclaimer(model.contract),
    )


def example(model: Model) -> Prediction:
    """The answer to the first image of the model's own golden set, for /docs."""
    golden, how = model.contract.golden[0], model.contract.decode
    image = decoding.decode(base64.b64decode(golden.image), how.size, scaled=how.scaled)
    outputs = {"probabilities": np.array(golden.probabilities, np.float32), "unlikeness": np.array(golden.unlikeness)}
    scores = Scores(outputs, queue_seconds=0.0001, infer_seconds=0.0517)
    return prediction("4b825dc642cb6eb9a060e54bf8d69288", model, image, scores, read=0.0004, decode=0.0019)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
