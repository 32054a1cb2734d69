"""How long a request is worth an answer: until its deadline, or until its client goes away."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from serving.problems import ProblemError
from serving.settings import Settings

HEADER = "X-Deadline-Ms"
DEADLINE_PARAMETER = {  # for OpenAPI
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    "description": "Milliseconds that the answer may take once the request has been read; the server caps it.",
}


def read_deadline(request: Request, settings: Settings) -> float:
    """When this request's answer is no longer of use, on the clock of time.perf_counter; counted from now.

    Raises ProblemError: 400 where the header is no positive whole number.
    """
    asked = request.headers.get(HEADER)
    if asked is None:
        return time.perf_counter() + settings.deadline_ms / 1000
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10 and int(asked) > 0):
        detail = f"{HEADER} is the time the answer may take, in milliseconds: a positive whole number."
        raise ProblemError(400, "bad-deadline", "The deadline is no number", detail)
    return time.perf_counter() + min(int(asked), settings.max_deadline_ms) / 1000


@contextmanager
def while_connected(request: Request) -> Iterator[None]:
    """Cancels the block when the client goes away; its body must have been read. Raises ClientDisconnect: it did."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        watcher.cancel()
