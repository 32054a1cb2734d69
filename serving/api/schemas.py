"""What the API answers besides a prediction, as types: `/docs` and `/openapi.json` come from these."""

from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from serving.inference.prediction import ModelIdentity, Prediction
from serving.problems import ProblemDetails


class BatchItem(BaseModel):
    """One image's answer, or its problem."""

    index: int = Field(description="its place among the files sent, from 0")
    prediction: Prediction | None = None
    problem: ProblemDetails | None = None


class BatchAnswer(BaseModel):
    """The answers to many images, in the order sent."""

    results: list[BatchItem]


class Health(BaseModel):
    """The server's state, for a person."""

    status: Literal["ok", "degraded", "stopping"]
    note: str | None = Field(description="why it is degraded")
    model: ModelIdentity
    previous: ModelIdentity | None = Field(description="in memory still, should the alias move back")
    challenger: ModelIdentity | None = Field(description="answers some requests too, unseen")
    classes: list[dict[str, str | bool]] = Field(description="key, label and malignant of each, in the model's order")
    subject: str = Field(description="what the model is for")
    operating_point: float | None = Field(description="malignant from this p_malignant on")
    uptime_seconds: float
    queue_depth: int = Field(description="images admitted and not yet answered")
    estimated_wait_ms: float = Field(description="what one more prediction would wait")
    threads: int = Field(description="of the model")
    intended_use: str
    disclaimer: str


class ModelAnswer(BaseModel):
    """The model in service, in full."""

    model: ModelIdentity
    contract: dict[str, JsonValue] = Field(description="what the model file promises; without its golden images")
    metrics: dict[str, JsonValue] | None = Field(description="from its evaluation, where it was registered with them")
    model_card: str | None = Field(description="Markdown")


class State(BaseModel):
    """The answer to a probe that succeeds."""

    status: Literal["ok"] = "ok"


class ErrorAnswer(BaseModel):
    """An error, in the protocol's form."""

    error: str = Field(description="what was wrong with this request, and what to do")


class Live(BaseModel):
    """Whether the server lives."""

    live: bool


class Ready(BaseModel):
    """Whether the server takes requests."""

    ready: bool


class ModelReady(BaseModel):
    """Whether the model takes requests."""

    name: str
    ready: bool


class ServerMetadata(BaseModel):
    """The server, and what it can do beyond the protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of the model."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any")


class ModelMetadata(BaseModel):
    """The model in service."""

    name: str
    versions: list[str] = Field(description="the one in service; empty for a file that was named directly")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
