"""Connections: how long one may stay without a request, and how many there may be."""

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_SECONDS = 10.0  # until a request's head must be there; its body has `read_seconds`
LEFTOVER_SECONDS = 60.0  # for the rest of a body that was refused: many a client reads no answer before all is sent


def allow_many() -> None:
    """Raises the soft limit of open files, often 1024, to the hard one: each connection is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Connection(HttpToolsProtocol):
    """A connection that ends where a request's head does not come, or comes byte by byte; uvicorn would wait for ever.

    A timer looks at it every HEAD_SECONDS, so the end may take twice as long.
    """

    _after: RequestResponseCycle | None = None  # the request after which a head is due; None: before the first
    _since: float  # when it was seen to be due

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now = self.loop.time()
        answering = self.cycle is not None and not self.cycle.response_complete
        idle = self.timeout_keep_alive_task is not None  # between two requests: then it is uvicorn that closes it
        if answering or idle or self.cycle is not self._after:
            self._after, self._since = self.cycle, now
        leftover = self.cycle is not None and self.cycle.more_body
        if now - self._since >= (LEFTOVER_SECONDS if leftover else HEAD_SECONDS):
            self.transport.close()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look)
