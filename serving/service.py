"""What the routes share while the server runs."""

import time
from dataclasses import dataclass, field

from fastapi import Request

from serving.access import Access
from serving.decoding import DecodePool
from serving.engine import Engine
from serving.feedback import Feedback
from serving.history import History
from serving.metrics import Metrics
from serving.models import Models
from serving.settings import Settings
from serving.shadow import Shadow
from serving.updates import Updates
from serving.upload import Buffered
from serving.window import Window


@dataclass
class Service:
    """One process's parts. `draining`: asked to stop, and answering until its clients know."""

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
