"""The answer to one image, as the API tells it."""

import base64
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leukdetect import decoding
from leukdetect.answer import answer, disclaimer
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


class Quality(BaseModel):
    """Measured on the image as the model sees it."""

    model_config = ConfigDict(from_attributes=True)

    brightness: float = Field(description="mean luma, 0..255")
    sharpness: float = Field(description="variance of the Laplacian; small means blurred")
    stain: float = Field(description="optical density of the darkest stain in red; small means no stained nucleus")


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


class Prediction(BaseModel):
    """The answer to one image."""

    request_id: str
    class_: str = Field(serialization_alias="class", description="the key of the highest class, reported or not")
    label: str = Field(description="the same for people")
    probabilities: dict[str, float] = Field(description="calibrated, for every class")
    p_malignant: float | None = Field(
        description="the malignant classes together; null where all of the model's classes are malignant, or none"
    )
    malignant: bool | None = Field(description="p_malignant is at or above the model's operating point")
    not_excluded: list[str] | None = Field(
        description="keys of the classes that cannot be excluded: a conformal prediction set, made to lack the true "
        "class in prediction_sets.error (see /model) of images like the validation images. For information: it selects "
        "nothing. null: the model file is from before there were any"
    )
    decision: Literal["report", "refer"] = Field(description="refer: the server declines, a haematologist must look")
    reasons: list[ReasonAnswer] = Field(description="why it refers; empty for report")
    wording: str = Field(description="the answer in words fit for a person")
    unlikeness: float = Field(description="distance from the training images; beyond 1 it refers")
    quality: Quality
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
    found = answer(model.contract, image, scores.outputs)
    header = image.header
    return Prediction(
        request_id=request_id,
        class_=found.key,
        **{name: value for name, value in vars(found).items() if name in Prediction.model_fields},
        image=ImageIdentity(
            sha256=image.sha256 or "",
            format=header.format,
            width=header.width,
            height=header.height,
            note=header.note,
        ),
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
