"""The application: the pages, the routers in the order in which /docs shows them, and what they share."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from leukdetect.answer import disclaimer
from serving import problems, shutdown
from serving.api import admin, explain, feedback, health, open_inference, predict, status
from serving.inference.prediction import example
from serving.metrics import Metrics
from serving.models.served import Models
from serving.models.startup import start
from serving.request.auth import Access
from serving.request.budget import Budget, made
from serving.request.middleware import Observe
from serving.service import Service
from serving.settings import Settings

STATIC = Path(__file__).with_name("static")
SWAGGER_UI = Path(str(files("fastapi_offline") / "static"))  # FastAPI's own /docs needs a CDN; hospitals have none

log = logging.getLogger(__name__)

pages = APIRouter(include_in_schema=False)
ROUTERS = (*(each.router for each in (predict, explain, feedback, health, status, open_inference, admin)), pages)


@pages.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@pages.get("/status")
async def status_page() -> FileResponse:
    return FileResponse(STATIC / "status.html")


@pages.get("/docs")
async def docs() -> FileResponse:
    csp = (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return FileResponse(STATIC / "docs.html", headers={"Content-Security-Policy": csp})  # Swagger UI styles inline


class Application(FastAPI):
    """The framework's, whose /docs show an answer of the model in service."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        shown = example(self.state.service.models.champion).model_dump(mode="json", by_alias=True)
        schema["components"]["schemas"]["Prediction"]["examples"] = [shown]
        return schema


def create_app(settings: Settings, models: Models, budget: Budget | None = None) -> FastAPI:
    """The server around models that are loaded already; `budget`: where connections hold a part of it already."""
    metrics, access = Metrics(), Access(settings.keys_file, settings.keys_readable)
    budget = budget or made(settings.request_memory)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        app.state.service = service = Service(settings, models, metrics, access, budget)
        shutdown.install(service)
        service.start()
        yield {"budget": budget}
        await service.stop()

    app = Application(
        title="LeukDetect",
        summary=models.champion.contract.wording.subject,
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
    app.add_middleware(
        Observe, metrics=metrics, stopping=lambda: app.state.service.draining, prefix=settings.path_prefix or ""
    )
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static/swagger-ui", StaticFiles(directory=SWAGGER_UI))
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def application(settings: Settings) -> FastAPI:
    """The server around the model that the settings name.

    Raises RegistryError, RefusedError, KeysError: it cannot start; the message says why.
    """
    models = start(settings)
    champion = models.champion
    shown = {"version": champion.located.version, "precision": champion.contract.precision}
    log.info("model loaded", extra=shown | {"sha256": champion.sha256, "threads": champion.threads})
    return create_app(settings, models)
