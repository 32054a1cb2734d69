"""A server before its first model: alive, not ready, asking the registry again; then the server proper."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from leukdetect.model_file import RefusedError
from leukdetect.registry import RegistryError, give_up, parse
from serving import problems
from serving.app import create_app
from serving.models.startup import start
from serving.request.budget import Budget, made
from serving.settings import Settings

MOST_SECONDS = 5.0  # between two questions: a deployment waits for this server

log = logging.getLogger(__name__)


def may_come(settings: Settings) -> bool:
    """Whether asking again may find a model: an alias can be given one; a file's name or a wrong path cannot."""
    try:
        parse(settings.model)
        settings.registry.refuse_missing_database()
    except RegistryError:
        return False
    return settings.watch_seconds > 0


class Waiting:
    """The ASGI application of a server whose alias names no version yet, or none that can be had.

    It answers /livez, and everything else with 503; the model's own application takes over once there is a model.
    """

    def __init__(self, settings: Settings, error: Exception) -> None:
        self._settings = settings
        self._pause = min(settings.watch_seconds, MOST_SECONDS)
        self._said = ""
        self._app: FastAPI | None = None
        self._budget = made(settings.request_memory)
        self._router = Router([Route("/livez", _alive)], default=self._not_ready, lifespan=self._lifespan)
        self._say(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._router if self._app is None or scope["type"] == "lifespan" else self._app
        await app(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[dict[str, Budget]]:
        async with AsyncExitStack() as running:
            looking = asyncio.create_task(self._look(running))
            yield {"budget": self._budget}
            looking.cancel()
            give_up()  # the loop would wait for its thread

    async def _look(self, running: AsyncExitStack) -> None:
        while self._app is None:
            await asyncio.sleep(self._pause)
            try:
                models = await asyncio.to_thread(start, self._settings)
                app = create_app(self._settings, models, self._budget)
                await running.enter_async_context(app.router.lifespan_context(app))
            except Exception as error:  # whatever it is, the next turn may do better
                self._say(error)
            else:
                log.info("model loaded", extra={"version": models.champion.located.version})
                self._app = app

    async def _not_ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = (
            f"{self._settings.model} names no version that can be served yet; the log says why. "
            f"The registry is asked every {self._pause:g} s."
        )
        error = problems.ProblemError(503, "no-model", "Waiting for a first model", detail, retry_after=5)
        content = problems.details(uuid.uuid4().hex, error).model_dump()
        await JSONResponse(content, error.status, error.headers, problems.MEDIA_TYPE)(scope, receive, send)

    def _say(self, error: Exception) -> None:
        """Logs why there is no model, once a reason."""
        if str(error) != self._said:
            self._said = str(error)
            expected = isinstance(error, (RegistryError, RefusedError))
            log.warning("waiting for a first model", exc_info=None if expected else error, extra={"error": self._said})


async def _alive(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
