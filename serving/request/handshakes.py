"""TLS handshakes with an end and a number, neither of which uvicorn can set: each may take a minute and holds 60 kB."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import uvloop

SECONDS = 10.0  # for a handshake, in all
MOST = 500  # at a time, or as many as may wait to be accepted; beyond, the one that has taken longest is ended
NO_ROOM_SECONDS = 0.1  # before the next is accepted where descriptors have run out


class Loop(uvloop.Loop):
    """An event loop whose servers count a connection from when it is accepted, and not from when it is encrypted."""

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, *, ssl: Any = None, **options: Any
    ) -> Any:
        if ssl is None:
            return await super().create_server(protocol_factory, host, port, **options)
        backlog, listener = options["backlog"], options.get("sock")
        if listener is None:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=backlog)
        return _Encrypted(self, protocol_factory, listener, ssl, min(MOST, backlog))


class _Encrypted:
    """What uvicorn needs of an asyncio.Server."""

    def __init__(
        self,
        loop: Loop,
        make: Callable[[], asyncio.Protocol],
        listener: socket.socket,
        context: ssl.SSLContext,
        most: int,
    ) -> None:
        listener.setblocking(False)
        self.sockets = [listener]
        self._loop, self._make, self._context, self._most = loop, make, context, most
        self._shaking: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._accepting = loop.create_task(self._accept())

    def close(self) -> None:
        self._accepting.cancel()
        self.sockets[0].close()

    async def wait_closed(self) -> None: ...

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self.sockets[0])
            except OSError:
                await asyncio.sleep(NO_ROOM_SECONDS)
                continue
            if len(self._shaking) == self._most:
                oldest = next(iter(self._shaking))
                del self._shaking[oldest]
                oldest.cancel()
            task = self._loop.create_task(self._shake(connection))
            self._shaking[task] = None
            task.add_done_callback(lambda task: self._shaking.pop(task, None))

    async def _shake(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make, connection, ssl=self._context, ssl_handshake_timeout=SECONDS
            )
        except OSError:  # it failed, or is over time
            connection.close()
