"""A small application behind the server's own connections: a short answer, and one that no system keeps whole."""

from typing import Any

from fastapi import FastAPI, Response

from serving.metrics import Metrics
from serving.request.middleware import Observe

LARGE = 32_000_000  # far more than the system keeps of an answer that is not read


def small_app(**options: Any) -> FastAPI:
    """`/small` and `/large`; `options` of FastAPI."""
    app = FastAPI(**options)
    app.add_middleware(Observe, metrics=Metrics(), stopping=lambda: False)

    @app.get("/small")
    async def small() -> str:
        return "small"

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(LARGE))

    return app
