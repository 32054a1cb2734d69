"""POST /predict and /predict/batch: upload, decode pool, engine, decision, answer."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request, Response

from leukdetect.model_file import Model
from serving import problems
from serving.api.schemas import BatchAnswer, BatchItem
from serving.inference.examine import examine
from serving.inference.prediction import Prediction, prediction
from serving.metrics import Metrics
from serving.request import auth, upload
from serving.request.deadline import DEADLINE_PARAMETER, read_deadline
from serving.service import Service, champion, of, received

BATCH_AT_ONCE = 4  # of one client's batch: enough to keep the model busy, and others find room

_IMAGE = {"type": "string", "format": "binary"}


def _form(file: dict[str, object]) -> dict[str, object]:
    return {"multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": file}}}}


# For OpenAPI: FastAPI does not see a body that a route reads by itself.
ONE_IMAGE = {"requestBody": {"required": True, "content": _form({**_IMAGE}) | {"image/*": {"schema": _IMAGE}}}}
_MANY_IMAGES = {"requestBody": {"required": True, "content": _form({"type": "array", "items": _IMAGE})}}

log = logging.getLogger(__name__)

router = APIRouter(tags=["predictions"], dependencies=[Depends(auth.Required("predict"))])


@dataclass(frozen=True)
class Upload:
    """One image file, when its answer is due (on the clock of time.perf_counter), and what its upload took."""

    data: bytes
    deadline: float
    read_seconds: float = 0.0


@asynccontextmanager
async def one_image(request: Request) -> AsyncIterator[Upload]:
    """The request's one image; the block is cancelled when the client goes away. The deadline counts from here on."""
    begun = time.perf_counter()
    settings = of(request).settings
    async with received(request, settings.max_body_bytes) as content:
        deadline = read_deadline(request, settings)
        data = upload.one_file(request, content)
        yield Upload(data, deadline, time.perf_counter() - begun)


@router.post(
    "/predict",
    response_model=Prediction,
    responses=problems.documented(400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=ONE_IMAGE | {"parameters": [DEADLINE_PARAMETER]},
)
async def predict(request: Request) -> Response:
    """Classifies one image: the multipart field `file`, or the image itself as the body.

    JPEG, PNG, BMP, TIFF, WebP or AVIF, known by content. The image is not kept. The answer may be to refer.
    """
    async with one_image(request) as sent:
        answered = await answer(of(request), champion(request), request.state.request_id, request.state.key, sent)
    request.state.decided = time.perf_counter()
    return Response(answered.model_dump_json(by_alias=True), media_type="application/json")


@router.post(
    "/predict/batch",
    response_model=BatchAnswer,
    responses=problems.documented(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
    openapi_extra=_MANY_IMAGES | {"parameters": [DEADLINE_PARAMETER]},
)
async def predict_batch(request: Request) -> Response:
    """Classifies many images: one multipart field `file` each. One result or problem each, in the order sent.

    The deadline is each image's own, from when its turn comes. `request_id` of the n-th prediction ends in `-n`.
    """
    service = of(request)
    settings = service.settings
    read_deadline(request, settings)  # a bad one is the whole request's fault
    async with received(request, settings.max_batch_bytes) as content:
        # In a thread: a hundred megabytes are a tenth of a second, for which /livez would not answer.
        files = await asyncio.to_thread(upload.all_files, request, content)
        if not 1 <= len(files) <= settings.max_batch_files:
            detail = f"The form has {len(files)} fields named '{upload.FIELD}'; send 1 to {settings.max_batch_files}."
            raise problems.ProblemError(413 if files else 422, "batch-size", "Not that many images", detail)
        turn = asyncio.Semaphore(BATCH_AT_ONCE)
        model, by = champion(request), request.state.key  # of them all, whatever is switched to meanwhile

        async def one(index: int, data: bytes) -> BatchItem:
            request_id = f"{request.state.request_id}-{index}"
            async with turn:
                try:
                    if len(data) > settings.max_body_bytes:
                        raise problems.body_too_large(settings.max_body_bytes)
                    sent = Upload(data, read_deadline(request, settings))
                    return BatchItem(index=index, prediction=await answer(service, model, request_id, by, sent))
                except problems.ProblemError as error:
                    return BatchItem(index=index, problem=problems.details(request_id, error))
                except Exception as error:  # our own fault, of which the others know nothing
                    log.exception("a request failed", extra={"request_id": request_id})
                    told = problems.no_memory(error) or problems.failed()
                    service.metrics.requests.labels(request.scope["route"].path, told.status, told.code).inc()
                    return BatchItem(index=index, problem=problems.details(request_id, told))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, data)) for index, data in enumerate(files)]
    results = BatchAnswer(results=[task.result() for task in tasks])
    return Response(results.model_dump_json(by_alias=True), media_type="application/json")


async def answer(service: Service, model: Model, request_id: str, by: str | None, sent: Upload) -> Prediction:
    """One image's way from bytes to answer; `by`: the name of whose key asks.

    Raises ProblemError: 413, 415, 422 for the image; 503 or 504 where it would have to wait too long.
    """
    with service.engine.admitted(sent.deadline):
        image, scores, decode_seconds = await examine(service.pool, service.engine, model, sent.data, sent.deadline)
    answered = prediction(request_id, model, image, scores, sent.read_seconds, decode_seconds)
    _count(service.metrics, answered)
    service.feedback.record(request_id, answered.key, answered.model.version, list(answered.probabilities), by)
    service.shadow.offer(image.pixels, answered)
    service.window.add(model, image, scores)
    return answered


def _count(metrics: Metrics, answer: Prediction) -> None:
    for stage, milliseconds in answer.timings_ms:
        metrics.stage_seconds.labels(stage).observe(milliseconds / 1000)
    metrics.megapixels.observe(answer.image.width * answer.image.height / 1e6)
    metrics.predictions.labels(answer.key, answer.model.version or "").inc()
    for reason in answer.reasons:
        for counter in (metrics.referrals, metrics.refusals):
            counter.labels(reason.code).inc()
    metrics.confidence.observe(max(answer.probabilities.values()))
    metrics.unlikeness.observe(answer.unlikeness)
