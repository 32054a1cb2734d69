"""Connections that never become a request, over real sockets."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fastapi import FastAPI, Request

from serving.request import connections
from tests.server import serve

HEAD = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server that gives a head 0.2 s."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    app = FastAPI()

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(1)
        return "done"

    @app.post("/refused")
    async def refused() -> str:
        return "no"

    with serve(app, http=connections.Connection) as client:
        yield client.base_url.host, client.base_url.port or 0


@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEAD[:-1]], ids=["nothing", "half a head", "all but a byte"])
def test_where_no_head_comes_the_connection_is_closed(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection, suppress(BrokenPipeError, ConnectionResetError):
        for byte in HEAD * 10:  # the last bytes would take seconds to come
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
        pytest.fail("the connection was never closed")


def test_the_head_of_a_later_request_is_due_as_well(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(HEAD + bytes(10))
        assert connection.recv(1000).endswith(b"10")
        connection.sendall(HEAD[:20])
        assert connection.recv(1) == b""


def test_neither_a_slow_body_nor_a_slow_answer_is_cut(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(HEAD)
        for _ in range(10):
            time.sleep(0.1)
            connection.sendall(b"x")
        assert connection.recv(1000).endswith(b"10")
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1000).endswith(b'"done"')


REFUSED = HEAD.replace(b"/body", b"/refused").replace(b"10", b"1000")


def test_the_rest_of_a_refused_body_has_more_time(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(REFUSED)
        assert connection.recv(1000).endswith(b'"no"')
        for _ in range(10):  # several looks
            time.sleep(0.1)
            connection.sendall(bytes(100))
        connection.sendall(HEAD + bytes(10))
        assert connection.recv(1000).endswith(b"10")


def test_but_not_for_ever(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LEFTOVER_SECONDS", 0.5)
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(REFUSED)
        assert connection.recv(1000).endswith(b'"no"')
        connection.sendall(bytes(100))  # ends uvicorn's own patience with an idle connection
        assert connection.recv(1) == b""
