"""What the routes share while the server runs, and how each takes a request's body."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Request

from serving.inference.decode_pool import DecodePool
from serving.inference.engine import Engine
from serving.metrics import Metrics
from serving.models.served import Models
from serving.models.updates import Updates
from serving.observability.drift_window import Window
from serving.observability.feedback_store import Feedback
from serving.observability.history import History
from serving.observability.shadow import Shadow
from serving.request.auth import Access
from serving.request.deadline import while_connected
from serving.request.upload import Buffered, body
from serving.settings import Settings


@dataclass
class Service:
    """The parts of a server. `draining`: asked to stop, and answering until its clients know."""

    settings: Settings
    models: Models
    metrics: Metrics
    engine: Engine
    pool: DecodePool
    buffered: Buffered
    access: Access
    feedback: Feedback
    shadow: Shadow
    window: Window
    history: History
    updates: Updates | None  # None: a file is served, which no alias can move
    draining: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        """Whether to send requests here. Overload does not change it."""
        return self.engine.alive and not self.draining


def of(request: Request) -> Service:
    """The service that answers this request."""
    service: Service = request.app.state.service
    return service


@asynccontextmanager
async def received(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The request's body, within the server's limits; the block is cancelled when the client goes away.

    Raises:
        ProblemError, ClientDisconnect: as `upload.body`.
    """
    service = of(request)
    async with body(request, service.buffered, max_bytes, service.settings.read_seconds) as content:
        with while_connected(request):
            yield content
