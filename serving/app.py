"""The application. `predict` is a request's way: upload, decode pool, engine, decision, answer."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.staticfiles import StaticFiles

from serving import answers, problems, upload
from serving.decision import decide
from serving.decoding import DecodePool
from serving.engine import Engine
from serving.metrics import Metrics
from serving.middleware import Observe
from serving.model import cpus
from serving.settings import Settings
from serving.startup import Start

STATIC = Path(__file__).with_name("static")
SWAGGER_UI = Path(str(files("fastapi_offline") / "static"))  # FastAPI's own /docs needs a CDN; hospitals have none

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "required": ["file"], "properties": {"file": _IMAGE["schema"]}}}
_BODY = {"required": True, "content": {"multipart/form-data": _FORM, "image/*": _IMAGE}}


@dataclass(frozen=True)
class Service:
    """What the routes share, while the server runs."""

    settings: Settings
    start: Start
    metrics: Metrics
    engine: Engine
    pool: DecodePool
    since: float = field(default_factory=time.monotonic)


router = APIRouter()


@router.post(
    "/predict", tags=["predictions"], responses=problems.documented(400, 413, 415, 422, 500, 503),
    openapi_extra={"requestBody": _BODY},
)  # fmt: skip
async def predict(request: Request) -> answers.Prediction:
    """Classifies one image: the multipart field `file`, or the image itself as the body.

    JPEG, PNG, BMP, TIFF or WebP, known by content. The image is not kept. The answer may be to refer.
    """
    service = _service(request)
    model = service.start.model
    begun = time.perf_counter()
    data = await upload.read(request, service.settings.max_body_bytes)
    read = time.perf_counter()
    image = await service.pool.run(data, model.contract.decode.size, service.settings.max_pixels)
    decoded = time.perf_counter()
    scores = await service.engine.run(image.pixels)
    decision = decide(scores.probabilities, scores.unlikeness, image.brightness, image.sharpness, model.contract)
    answer = answers.prediction(
        request.state.request_id, model, image, scores, decision, read=read - begun, decode=decoded - read
    )
    service.metrics.count(answer)
    return answer


@router.get("/health", tags=["state"])
async def health(request: Request) -> answers.Health:
    """The status a person wants: which model serves, and how it is doing."""
    service = _service(request)
    contract = service.start.model.contract
    return answers.Health(
        status="degraded" if service.start.note else "ok",
        note=service.start.note,
        model=answers.identity(service.start.model),
        classes=[{"key": each.key, "label": each.label, "malignant": each.malignant} for each in contract.classes],
        operating_point=contract.thresholds.malignant,
        uptime_seconds=round(time.monotonic() - service.since, 1),
        queue_depth=service.engine.depth,
        intended_use=contract.intended_use,
        disclaimer=answers.disclaimer(service.start.model),
    )


@router.get("/livez", tags=["state"])
async def livez() -> answers.State:
    """The process answers."""
    return answers.State()


@router.get("/readyz", tags=["state"], responses=problems.documented(503))
async def readyz(request: Request) -> answers.State:
    """The model is warm and its thread alive. Overload does not change it."""
    if not _service(request).engine.ready:
        raise problems.ProblemError(503, "not-ready", "Not ready", "The model's thread is not running.")
    return answers.State()


@router.get("/metrics", tags=["state"], response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(_service(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    csp = (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return FileResponse(STATIC / "docs.html", headers={"Content-Security-Policy": csp})  # Swagger UI styles inline


def create_app(settings: Settings, start: Start) -> FastAPI:
    """The server around a model that is loaded already."""
    own_metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = start.model
        engine = Engine(model.infer, settings.queue_size, own_metrics.batch_size)
        pool = DecodePool(cpus(), settings.queue_size)
        app.state.service = Service(settings, start, own_metrics, engine, pool)
        own_metrics.describe(answers.identity(model))
        own_metrics.queue_depth.set_function(lambda: engine.depth)
        yield
        pool.close()
        engine.close()

    app = FastAPI(
        title="LeukDetect",
        summary="Acute lymphoblastic leukaemia on peripheral blood smears, in four classes",
        description=answers.disclaimer(start.model),
        version=start.model.located.version or "file",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(Observe, metrics=own_metrics)
    app.include_router(router)
    app.mount("/static/swagger-ui", StaticFiles(directory=SWAGGER_UI))
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
