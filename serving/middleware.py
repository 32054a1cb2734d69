"""What every request gets: an id, a time, a log line, safe headers, and an answer even when our own code fails."""

import logging
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems
from serving.metrics import Metrics

CLIENT_GONE = 499  # no standard status; nginx's, and so what dashboards know
_PROBES = frozenset(
    {"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/status.json"}
)  # asked every few seconds: logged only when they fail
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # an answer about a patient belongs in no cache
}

log = logging.getLogger(__name__)


class Observe:
    """Wraps the application; see the module's first line. Plain ASGI, since a base-class middleware costs a task."""

    def __init__(self, app: ASGIApp, metrics: Metrics, stopping: Callable[[], bool]) -> None:
        self.app = app
        self.metrics = metrics
        self.stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Made here, never taken from the client: it names a prediction, so it must not repeat.
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["reason"] = ""
        started = time.perf_counter()
        status: int | None = None
        self.metrics.in_flight.inc()

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self.stopping():
                    headers["Connection"] = "close"  # the client's next request goes to another server
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except ClientDisconnect:
            pass  # nobody is there to answer; the log line below says so
        except Exception:
            log.exception("a request failed", extra={"request_id": request_id})
            if status is not None:
                raise  # half an answer is out: the server must cut the connection
            detail = "The server failed on this request. Quote the request id to whoever runs it."
            await problems.plain(request_id, 500, detail)(scope, receive, send_on)
        finally:
            now = time.perf_counter()
            seconds = now - started
            self.metrics.in_flight.dec()
            if (decided := scope["state"].get("decided")) is not None:
                self.metrics.stage_seconds.labels("respond").observe(now - decided)
            route = getattr(scope.get("route"), "path", "other")  # the pattern, never the client's path
            code = status or CLIENT_GONE
            reason = scope["state"]["reason"] or ("client-gone" if status is None else "")
            self.metrics.requests.labels(route, code, reason).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            if route not in _PROBES or code >= 400:
                fields = {"request_id": request_id, "route": route, "code": code, "ms": round(seconds * 1000, 1)}
                log.info("request", extra=fields)
