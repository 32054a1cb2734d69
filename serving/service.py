"""What the routes share while the server runs, and how each takes a request's body."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from functools import partial

from fastapi import Request

from leukdetect.model_file import Model
from leukdetect.registry import is_alias
from leukdetect.runtime import cpus
from serving.inference.engine import BATCH, Engine, Lane
from serving.inference.examine import DecodePool
from serving.metrics import Metrics
from serving.models.served import Models
from serving.models.updates import Updates
from serving.observability import drift_window, history
from serving.observability.drift_window import Window
from serving.observability.feedback_store import Feedback
from serving.observability.history import History
from serving.observability.shadow import Shadow
from serving.periodic import Periodic
from serving.request import auth
from serving.request.auth import Access
from serving.request.budget import Budget
from serving.request.upload import Buffered, body
from serving.settings import Settings


class Service:
    """The parts of a server. `draining`: asked to stop, and answering until its clients know."""

    def __init__(self, settings: Settings, models: Models, metrics: Metrics, access: Access, budget: Budget) -> None:
        self.settings, self.models, self.metrics, self.budget = settings, models, metrics, budget
        self.draining = False
        self.since = time.monotonic()
        self.buffered = Buffered(settings.max_buffered_bytes, budget)
        self.pool = DecodePool(cpus(), settings.queue_size, settings.max_pixels, metrics.decoded_apart, budget)
        sizes: dict[Lane, int] = {"predict": settings.queue_size, "explain": settings.explain_queue_size}
        sizes["shadow"] = BATCH
        self.engine = Engine(sizes, models.champion.seconds_an_image, metrics, models.champion.threads)
        self.shadow = Shadow(settings.shadow_share, models, self.engine, metrics)
        file = settings.feedback_db or settings.cache_dir / "feedback.db"
        self.feedback = Feedback(file, settings.feedback_days, metrics)
        self.window, self.history = Window(metrics), History(metrics)
        self._periodic = (
            Periodic("drift", drift_window.SECONDS, self.window.compare),
            Periodic("history", history.STEP, self.history.remember),
            Periodic("keys", auth.LOOK_SECONDS, access.look),
        )
        # None: a file is served, which no alias can move
        self.updates = Updates(settings, models, metrics) if is_alias(settings.model) else None
        background = (*self._periodic, self.feedback.periodic, *([self.updates.periodic] if self.updates else []))
        self._threads: tuple[Engine | Periodic, ...] = (self.engine, *background)
        for each in background:
            metrics.thread_busy.labels(each.name).set_function(partial(getattr, each, "busy_seconds"))
        for thread in self._threads:
            metrics.thread_alive.labels(thread.name).set_function(partial(getattr, thread, "alive"))
        metrics.request_bytes.labels("held").set_function(lambda: budget.held)
        metrics.request_bytes.labels("most").set(budget.most)
        metrics.describe(models.champion)
        metrics.threads.set(models.champion.threads)
        metrics.registry_reachable.set(1)  # until it is asked in vain

    def start(self) -> None:
        """Begins to watch the registry and the answers."""
        for each in self._periodic:
            each.start()
        if self.updates:
            self.updates.start()

    async def stop(self) -> None:
        """Answers what waits, writes what is to be kept, and ends every thread."""
        self.draining = True
        if self.updates:
            await asyncio.to_thread(self.updates.stop)
        for each in self._periodic:
            each.stop()
        self.shadow.close()
        self.pool.close()
        self.engine.close()
        self.feedback.close()

    @property
    def dead(self) -> list[str]:
        """The threads that have ended though nobody asked; only a restart brings them back."""
        return [] if self.draining else [each.name for each in self._threads if not each.alive]

    @property
    def ready(self) -> bool:
        """Whether to send requests here. Overload does not change it."""
        return self.engine.alive and not self.draining


def of(request: Request) -> Service:
    """The service that answers this request."""
    service: Service = request.app.state.service
    return service


def champion(request: Request) -> Model:
    """The model in service, which this request keeps to its end, and which its line in the log names."""
    model = of(request).models.champion
    request.state.model_version = model.located.version or "file"
    return model


def received(request: Request, max_bytes: int) -> AbstractAsyncContextManager[bytes]:
    """The request's body, within the server's limits, as `upload.body` gives it."""
    service = of(request)
    return body(request, service.buffered, max_bytes, service.settings.read_seconds)
