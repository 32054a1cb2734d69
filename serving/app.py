"""The application: the pages, the routers in the order in which /docs shows them, and what they share."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from leukdetect.answer import disclaimer
from leukdetect.registry import is_alias
from leukdetect.runtime import cpus
from serving import problems, shutdown
from serving.api import admin, explain, feedback, health, open_inference, predict, status
from serving.inference.decode_pool import DecodePool
from serving.inference.engine import BATCH, Engine, Lane
from serving.metrics import Metrics
from serving.models.served import Models
from serving.models.startup import start
from serving.models.updates import Updates
from serving.observability import drift_window, history
from serving.observability.drift_window import Window
from serving.observability.feedback_store import Feedback
from serving.observability.history import History
from serving.observability.shadow import Shadow
from serving.periodic import Periodic
from serving.request.auth import Access
from serving.request.middleware import Observe
from serving.request.upload import Buffered
from serving.service import Service
from serving.settings import Settings

STATIC = Path(__file__).with_name("static")
SWAGGER_UI = Path(str(files("fastapi_offline") / "static"))  # FastAPI's own /docs needs a CDN; hospitals have none

log = logging.getLogger(__name__)

pages = APIRouter(include_in_schema=False)
ROUTERS = (
    predict.router,
    explain.router,
    feedback.router,
    health.router,
    status.router,
    open_inference.router,
    admin.router,
    pages,
)


@pages.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@pages.get("/docs")
async def docs() -> FileResponse:
    csp = (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return FileResponse(STATIC / "docs.html", headers={"Content-Security-Policy": csp})  # Swagger UI styles inline


def create_app(settings: Settings, models: Models) -> FastAPI:
    """The server around models that are loaded already."""
    metrics = Metrics()
    access = Access(settings.keys_file)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sizes: dict[Lane, int] = {
            "predict": settings.queue_size,
            "explain": settings.explain_queue_size,
            "shadow": BATCH,
        }
        engine = Engine(sizes, models.champion.seconds_an_image, metrics)
        pool = DecodePool(cpus(), settings.queue_size, settings.max_pixels)
        store = Feedback(
            settings.feedback_db or settings.cache_dir / "feedback.db",
            settings.feedback_days,
            metrics.feedback,
            metrics.feedback_dropped,
        )
        updates = Updates(settings, models, metrics) if is_alias(settings.model) else None
        app.state.service = service = Service(
            settings=settings,
            models=models,
            metrics=metrics,
            engine=engine,
            pool=pool,
            buffered=Buffered(settings.max_buffered_bytes),
            access=access,
            feedback=store,
            shadow=Shadow(settings.shadow_share, models, engine, metrics),
            window=Window(metrics),
            history=History(metrics),
            updates=updates,
        )
        metrics.describe(models.champion)
        metrics.threads.set(models.champion.threads)
        shutdown.install(service)
        metrics.registry_reachable.set(1)  # until it is asked in vain
        periodic = (
            Periodic("drift", drift_window.SECONDS, service.window.compare),
            Periodic("history", history.STEP, service.history.remember),
        )
        for each in (*periodic, updates):
            if each:
                each.start()
        yield
        service.draining = True
        if updates:
            await asyncio.to_thread(updates.stop)
        for thread in periodic:
            thread.stop()
        service.shadow.close()
        pool.close()
        engine.close()
        store.close()

    app = FastAPI(
        title="LeukDetect",
        summary="Acute lymphoblastic leukaemia on peripheral blood smears, in four classes",
        description=disclaimer(models.champion.contract),
        version=models.champion.located.version or "file",
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours are /metrics and JSON lines
        lifespan=lifespan,
    )
    app.state.access = access
    problems.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Observe, metrics=metrics, stopping=lambda: app.state.service.draining)
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static/swagger-ui", StaticFiles(directory=SWAGGER_UI))
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def application(settings: Settings) -> FastAPI:
    """The server around the model that the settings name.

    Raises:
        RegistryError, RefusedError, KeysError: it cannot start; the message says why.
    """
    models = start(settings)
    champion = models.champion
    log.info(
        "model loaded",
        extra={
            "version": champion.located.version,
            "precision": champion.contract.precision,
            "sha256": champion.sha256,
            "threads": champion.threads,
        },
    )
    return create_app(settings, models)
