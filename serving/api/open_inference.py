"""The Open Inference Protocol, version 2 over HTTP: tensors in, tensors out, for the clients of KServe and Triton.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor data extension. Here an image is
already decoded and resized, by the client, as the contract at GET /model says; the answer is the model's own, with no
decision. Errors have the protocol's form {"error": "…"}: see `serving.problems`.
"""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from leukdetect import __version__
from leukdetect.contract import OUTPUTS
from leukdetect.model_file import Model
from serving.api import tensors
from serving.api.predict import BATCH_AT_ONCE
from serving.api.schemas import ErrorAnswer, Live, ModelMetadata, ModelReady, Ready, ServerMetadata, TensorMetadata
from serving.api.tensors import InferAnswer
from serving.inference.engine import Lane, Scores
from serving.problems import ProblemError
from serving.request import auth
from serving.request.deadline import DEADLINE_PARAMETER, read_deadline
from serving.service import Service, champion, of, received

SERVER = "leukdetect"

NAMED = "/v2/models/{name}"
VERSIONED = NAMED + "/versions/{version}"

# One at a time: what holds the interpreter is milliseconds long, and must not line up before /livez.
_packing = ThreadPoolExecutor(1, thread_name_prefix="tensors")


def _errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    return {status: {"model": ErrorAnswer} for status in statuses}


async def _model(request: Request, name: str) -> Model:
    """The champion of this moment, if it has this name."""
    model = champion(request)
    if name != model.contract.name:
        detail = f"No model of that name is served here; '{model.contract.name}' is."
        raise ProblemError(404, "unknown-model", "No such model", detail)
    return model


async def _in_service(model: Annotated[Model, Depends(_model)], version: str) -> None:
    if version != model.located.version:
        here = f"version '{model.located.version}'" if model.located.version else "a file without a version"
        detail = f"That version is not in service; {here} is. Leave /versions/… out for whichever is."
        raise ProblemError(404, "unknown-model", "No such version", detail)


Served = Annotated[Model, Depends(_model)]
_KEY = Depends(auth.Required("predict"))
_VERSION = Depends(_in_service)

router = APIRouter(tags=["Open Inference Protocol"])


@router.get("/v2", dependencies=[_KEY], responses=_errors(401, 403, 429))
async def server_metadata() -> ServerMetadata:
    """The server."""
    return ServerMetadata(name=SERVER, version=__version__, extensions=["binary_tensor_data"])


@router.get("/v2/health/live", response_model=Live, responses={503: {"model": Live}})
async def live(request: Request) -> Response:
    """As /livez."""
    service = of(request)
    alive = not service.dead
    return JSONResponse({"live": alive}, 200 if alive else 503)


@router.get("/v2/health/ready", response_model=Ready, responses={503: {"model": Ready}})
async def ready(request: Request) -> Response:
    """As /readyz."""
    is_ready = of(request).ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get(NAMED, dependencies=[_KEY], responses=_errors(401, 403, 404, 429))
@router.get(VERSIONED, dependencies=[_KEY, _VERSION], responses=_errors(401, 403, 404, 429))
async def model_metadata(model: Served) -> ModelMetadata:
    """The model's tensors."""
    size = model.contract.decode.size
    nodes = {node.name: node for node in model.session.get_outputs()}
    outputs = [
        TensorMetadata(
            name=name, datatype="FP32", shape=[side if isinstance(side, int) else -1 for side in nodes[name].shape]
        )
        for name in OUTPUTS
    ]
    return ModelMetadata(
        name=model.contract.name,
        versions=[model.located.version] if model.located.version else [],
        platform="onnxruntime_onnx",
        inputs=[TensorMetadata(name=tensors.INPUT, datatype="UINT8", shape=[-1, size, size, 3])],
        outputs=outputs,
    )


_READY = _errors(404) | {503: {"model": ModelReady}}


@router.get(NAMED + "/ready", response_model=ModelReady, responses=_READY)
@router.get(VERSIONED + "/ready", response_model=ModelReady, responses=_READY, dependencies=[_VERSION])
async def model_ready(request: Request, model: Served) -> Response:
    """As /readyz."""
    is_ready = of(request).ready
    return JSONResponse({"name": model.contract.name, "ready": is_ready}, 200 if is_ready else 503)


_SENT = {
    "name": tensors.INPUT,
    "datatype": "UINT8",
    "shape": [1, 224, 224, 3],
    "data": "150528 numbers, 0 to 255, in an array: flat, or nested as the shape says",
}
_OBJECT = {"type": "object"}
_OBJECTS = {"type": "array", "items": _OBJECT}
_BODY = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": _OBJECTS | {"minItems": 1, "maxItems": 1},
        "outputs": _OBJECTS,
        "parameters": _OBJECT,
    },
    "example": {"id": "42", "inputs": [_SENT], "outputs": [{"name": "probabilities"}]},
}
_LENGTH = {
    "name": tensors.HEADER_LENGTH,
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1},
    "description": "Bytes of JSON at the body's beginning, where a binary tensor follows it.",
}
_INFER: dict[str, Any] = {
    "response_model": InferAnswer,
    "response_model_exclude_none": True,
    "responses": _errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504),
    "openapi_extra": {
        "parameters": [DEADLINE_PARAMETER, _LENGTH],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _BODY},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    },
}


@router.post(NAMED + "/infer", dependencies=[_KEY], **_INFER)
@router.post(VERSIONED + "/infer", dependencies=[_KEY, _VERSION], **_INFER)
async def infer(request: Request, model: Served) -> Response:
    """Runs the model on images of its own size, as one UINT8 tensor, in JSON or binary.

    Without `outputs`, the answer is `probabilities` and `unlikeness`: `cam` waits for predictions, and `embedding` is
    long. The deadline is each image's own, from when its turn comes. Not counted among the predictions.
    """
    service = of(request)
    settings = service.settings
    size = model.contract.decode.size
    read_deadline(request, settings)  # a bad one is told before the work
    most = min(settings.max_batch_bytes, tensors.MAX_JSON_BYTES + settings.max_batch_files * math.prod((size, size, 3)))
    in_thread = asyncio.get_running_loop().run_in_executor
    async with received(request, most) as content:
        json_bytes = tensors.json_bytes(request, content)
        asked = await in_thread(_packing, tensors.read, content, json_bytes, size, settings.max_batch_files)
        scores = await _scores(request, service, model, asked)
        return await in_thread(_packing, tensors.pack, model, asked, scores)


async def _scores(request: Request, service: Service, model: Model, asked: tensors.Asked) -> list[Scores]:
    """Runs every image, a few at a time, in places that are kept until the last is done.

    Raises ProblemError: 503 where there is no place, 504 where an image's turn comes too late: then none is answered.
    """
    lane: Lane = "explain" if "cam" in asked.outputs else "predict"
    outputs = tuple(name for name in OUTPUTS if name in asked.outputs)  # the same order shares a run with others
    turns = iter(range(len(asked.pixels)))
    scores: dict[int, Scores] = {}

    async def work() -> None:
        for index in turns:
            deadline = read_deadline(request, service.settings)
            pixels = asked.pixels[index]
            scores[index] = await service.engine.run(model, pixels, deadline, lane=lane, outputs=outputs)

    with ExitStack() as places:
        admitted = 0
        try:
            while admitted < min(BATCH_AT_ONCE, len(asked.pixels)):
                places.enter_context(service.engine.admitted(read_deadline(request, service.settings), lane))
                admitted += 1
        except ProblemError:
            if not admitted:  # one will do
                raise
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(admitted):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return [scores[index] for index in range(len(asked.pixels))]
