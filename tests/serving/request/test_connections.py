"""Connections that never become a request, or whose client does not read, or that are too many, over real sockets."""

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from serving.request import connections
from serving.request.deadline import while_connected
from tests.server import serve
from tests.serving.request.small_app import LARGE, small_app

MOST = 5
HEAD = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server that gives a head 0.2 s, and has MOST connections."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    app = small_app()

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(1)
        return "done"

    @app.get("/watching")
    async def watching(request: Request) -> str:
        await request.body()
        with while_connected(request):
            await asyncio.sleep(60)
        return "nobody left"

    @app.post("/refused")
    async def refused() -> str:
        return "no"

    with serve(app, http=connections.Connection, limit_concurrency=MOST) as client:
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


@pytest.mark.parametrize("path", [b"slow", b"watching"])
@pytest.mark.parametrize("then", [b"", b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n", b"no request\r\n\r\n"])
def test_a_client_that_leaves_ends_its_requests_also_the_one_before_the_last(
    address: tuple[str, int], path: bytes, then: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_connection(address, timeout=30) as leaving:
        leaving.sendall(b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n%s" % (path, then))
        time.sleep(0.1)
    until = time.monotonic() + 30
    while not [each for each in caplog.records if each.message == "request"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


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


def test_who_asks_and_does_not_read_is_cut_off_and_who_reads_slowly_is_not(address: tuple[str, int]) -> None:
    ask = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(address, timeout=30) as deaf, socket.create_connection(address, timeout=30) as slow:
        deaf.sendall(ask)
        slow.sendall(ask)
        received = 0
        while received < LARGE // 8:  # for more than two looks
            received += len(slow.recv(LARGE // 64))
            time.sleep(0.1)
        while received < LARGE:
            data = slow.recv(2**20)
            assert data
            received += len(data)
        received = 0
        while data := deaf.recv(2**20):  # what the system had of it, and then the end
            received += len(data)
        assert received < LARGE


@pytest.mark.parametrize("unread", [0, 1])
def test_a_stop_does_not_wait_for_clients_that_do_not_read(monkeypatch: pytest.MonkeyPatch, unread: int) -> None:
    monkeypatch.setattr(connections, "STOP_SECONDS", 0.2)
    app = FastAPI()

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(LARGE))

    with serve(app, http=connections.Connection, timeout_graceful_shutdown=20) as client:
        host = client.base_url.host, client.base_url.port or 0
        asking = [socket.create_connection(host, timeout=30) for _ in range(20)]
        for each in asking:
            each.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            assert each.recv(unread, socket.MSG_PEEK if unread else 0) == b"H" * unread
        begun = time.monotonic()
    assert time.monotonic() - begun < 15  # and not 20
    for each in asking:
        each.close()


def test_one_connection_too_many_ends_the_one_that_was_idle_longest(address: tuple[str, int]) -> None:
    with ExitStack() as stack:
        first, *others = (stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(MOST))
        head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
        others[-1].sendall(head)
        time.sleep(0.05)
        with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
            assert client.get("/small").status_code == 200
        assert first.recv(1) == b""
        others[-1].sendall(bytes(10))
        assert others[-1].recv(1000).endswith(b"10")


def test_where_all_are_busy_there_is_room_for_probes(address: tuple[str, int]) -> None:
    with ExitStack() as stack:
        for _ in range(MOST):
            busy = stack.enter_context(socket.create_connection(address, timeout=30))
            busy.sendall(HEAD)
        time.sleep(0.05)
        for _ in range(2 * connections.RESERVED):
            idle = stack.enter_context(socket.create_connection(address, timeout=30))
            with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
                assert client.get("/small").status_code == 200
                answer = client.post("/body", content=bytes(10), headers={"Connection": "close"})
                assert (answer.status_code, answer.json()["detail"]) == (
                    503,
                    "Too many connections. Try again in a second.",
                )
        assert idle
        busy.sendall(bytes(10))
        assert busy.recv(1000).endswith(b"10")
