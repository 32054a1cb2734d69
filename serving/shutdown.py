"""A stop that nobody notices: on SIGTERM not ready at once, answering on for a while, and only then closing."""

import asyncio
import logging
import signal
import threading
from types import FrameType

import uvicorn

from serving.service import Service

LAST_SECONDS = 0.25  # after the port is closed, for requests on connections that were opened just before

log = logging.getLogger(__name__)


def install(service: Service) -> None:
    """Puts the grace period before uvicorn's own SIGTERM handler.

    1. /readyz says no, so that load balancers send no more; every answer closes its connection, so that no client
       sends its next request into one that is about to be closed.
    2. After `grace_seconds` the port is closed.
    3. A moment later uvicorn closes idle connections, and waits for what is under way. (It would do 2 and 3 at once,
       and so cut off who had just connected.)

    A second SIGTERM, or Ctrl-C, cuts it short.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # embedded, as in tests: signals are somebody else's
    loop = asyncio.get_running_loop()
    close = signal.getsignal(signal.SIGTERM)
    server = getattr(close, "__self__", None)
    if not isinstance(server, uvicorn.Server):
        return  # served by something else than `python -m serving`
    grace = service.settings.grace_seconds

    def stop(number: int, frame: FrameType | None) -> None:
        if service.draining:
            server.handle_exit(number, frame)
            return
        service.draining = True
        # Not logged from here: the signal may have come in the middle of another line, and stderr is not reentrant.
        loop.call_soon_threadsafe(begin)

    def begin() -> None:
        log.info("stopping", extra={"grace_seconds": grace})
        loop.call_later(grace, close_port)

    def close_port() -> None:
        for listener in server.servers:
            listener.close()
        loop.call_later(LAST_SECONDS, server.handle_exit, signal.SIGTERM, None)

    signal.signal(signal.SIGTERM, stop)
