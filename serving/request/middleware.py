"""What every request gets: an id, a time, a log line, safe headers, and an answer even when our own code fails."""

import logging
import os
import time
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems
from serving.metrics import Metrics

CLIENT_GONE = 499  # no standard status; nginx's, and so what dashboards know
_PROBES = frozenset(
    {"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/status.json"}
)  # asked every few seconds: logged only when they fail
_CSP = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _CSP),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),  # an answer about a patient belongs in no cache
]

log = logging.getLogger(__name__)


class Observe:
    """Wraps the application; see the module's first line. Plain ASGI, since a base-class middleware costs a task."""

    def __init__(self, app: ASGIApp, metrics: Metrics, stopping: Callable[[], bool], prefix: str = "") -> None:
        self.app = app
        self.metrics = metrics
        self.stopping = stopping
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # uvicorn, which leaves out the body of its answer, has a scope of its own
            scope = {**scope, "method": "GET"}
        if self.prefix:  # which a proxy may have taken off
            path = scope["path"]
            inside = path == self.prefix or path.startswith(self.prefix + "/")
            scope = {**scope, "root_path": self.prefix, "path": path if inside else self.prefix + path}
        # Made here, never taken from the client: it names a prediction, so it must not repeat.
        request_id = os.urandom(16).hex()
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "reason": ""}
        started = time.perf_counter()
        status: int | None = None
        self.metrics.in_flight.inc()

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                if status == 307:  # the framework's, for a slash: it names whatever host the client has named
                    headers = [(name, _relative(scope) if name == b"location" else value) for name, value in headers]
                present = {name for name, _ in headers}
                headers += [header for header in _HEADERS if header[0] not in present]
                headers.append((b"x-request-id", request_id.encode()))
                if self.stopping():
                    headers.append((b"connection", b"close"))  # the client's next request goes to another server
                message["headers"] = headers
            await send(message)

        try:
            problem = state.pop("problem", None)  # the connection's: it was no request
            app = problems.answer(Request(scope), problem) if problem else self.app
            await app(scope, receive, send_on)
        except ClientDisconnect:
            pass  # nobody is there to answer; the log line below says so
        except Exception as error:
            log.exception("a request failed", extra={"request_id": request_id})
            if status is not None:
                raise  # half an answer is out: the server must cut the connection
            told = problems.no_memory(error) or problems.plain(500, problems.failed().detail)
            await problems.answer(Request(scope), told)(scope, receive, send_on)
        finally:
            now = time.perf_counter()
            seconds = now - started
            self.metrics.in_flight.dec()
            if (decided := state.get("decided")) is not None:
                self.metrics.stage_seconds.labels("respond").observe(now - decided)
            route = getattr(scope.get("route"), "path", "other")  # the pattern, never the client's path
            code = status or CLIENT_GONE
            reason = state["reason"] or ("client-gone" if status is None else "")
            self.metrics.requests.labels(route, code, reason).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            if route not in _PROBES or code >= 400:
                fields = {"request_id": request_id, "route": route, "code": code, "ms": round(seconds * 1000, 1)}
                known = {name: state[name] for name in ("key", "model_version") if state.get(name)}
                log.info("request", extra=fields | known)


def _relative(scope: Scope) -> bytes:
    """The right path, with a slash less at its end or one more: relative, since a proxy may change all before it."""
    path: bytes = scope["raw_path"]
    right = path.rstrip(b"/")
    last = right.rpartition(b"/")[2]
    target = b"../" * (len(path) - len(right)) + last if path != right else b"./" + last + b"/"
    return target + (b"?" + scope["query_string"] if scope["query_string"] else b"")
