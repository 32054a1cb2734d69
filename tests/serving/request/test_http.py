"""HTTP as RFC 9110 and 9112 have it, over raw sockets to the server as it runs: one answer to each request."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from serving.request.auth import Key, digest_of
from serving.request.connections import HEAD_SECONDS, MAX_FIELDS, MAX_HEAD_BYTES
from tests import tiny_model
from tests.conftest import require
from tests.memory import resident
from tests.server import Server, running, write_keys

BLUE = tiny_model.jpeg((60, 60, 200))
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OVER_LONG = bytes(25_000_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    tiny_model.write(folder / "m.onnx")
    with running(folder, "--model", str(folder / "m.onnx")) as server:
        yield server


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    tiny_model.write(folder / "m.onnx")
    write_keys(folder / "keys", Key("ward", "predict", digest_of("key"), 1).line())
    with running(folder, "--model", str(folder / "m.onnx"), "--keys-file", str(folder / "keys")) as server:
        yield server


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.split("//")[1].split(":")
    return host, int(port)


def post(path: bytes, body: bytes, more: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST %s HTTP/%s\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (path, version, len(body), more, body)


def answers(server: Server, *packets: bytes) -> list[int]:
    """The status of every answer to what is sent, a packet at a time, and at last to a request for /livez."""
    received = b""
    with socket.create_connection(address(server), timeout=20) as connection, suppress(ConnectionError):
        for packet in packets:
            connection.sendall(packet)
            time.sleep(0.02)
        connection.sendall(LAST)
        while data := connection.recv(2**20):
            received += data
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) (?!Continue)", received)]


# --- one request is never read as two -------------------------------------------------------------------------------

ROUTES = [b"/predict", b"/explain", b"/predict/batch", b"/feedback", b"/v2/models/leukdetect/infer", b"/admin/reload"]
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"


@pytest.mark.parametrize("upgrade", [UPGRADE, UPGRADE.replace(b"h2c", b"TLS/1.0"), UPGRADE.upper(), WEBSOCKET])
def test_upgrade_is_ignored_and_the_body_is_read(server: Server, upgrade: bytes) -> None:
    head, body = post(b"/predict", BLUE, upgrade).split(b"\r\n\r\n", 1)
    assert answers(server, head + b"\r\n\r\n" + body) == [200, 200]
    assert answers(server, head + b"\r\n\r\n", body) == [200, 200]
    assert answers(server, head[:60], head[60:] + b"\r\n\r\n" + body[:5], body[5:]) == [200, 200]
    assert answers(server, LIVE + head + b"\r\n\r\n" + body + LIVE) == [200, 200, 200, 200]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("upgrade", [b"", UPGRADE])
def test_a_body_that_looks_like_a_request_is_not_one(server: Server, path: bytes, upgrade: bytes) -> None:
    hidden = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    head = post(path, hidden, upgrade)[: -len(hidden)]
    assert len(answers(server, head, hidden)) == 2
    assert len(answers(server, head + hidden)) == 2
    chunked = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%s\r\n" % (path, upgrade)
    assert len(answers(server, chunked, b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden))) == 2


def test_upgrade_without_a_body_is_ignored_too(server: Server) -> None:
    assert answers(server, LIVE.replace(b"\r\n\r\n", b"\r\n" + WEBSOCKET + b"\r\n")) == [200, 200]


CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
AMBIGUOUS = {
    "length before chunks": CHUNKED.replace(b"Transfer", b"Content-Length: 5\r\nTransfer") + b"0\r\n\r\n",
    "length after chunks": CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": post(b"/predict", b"abc", b"Content-Length: 3\r\n"),
    "a list of lengths": post(b"/predict", b"").replace(b"Length: 0", b"Length: 0, 0"),
    "a signed length": post(b"/predict", b"").replace(b"Length: 0", b"Length: +0"),
    "a length of 5,000 digits": post(b"/predict", b"").replace(b"Length: 0", b"Length: " + b"0" * 5000),
    "a length beyond 64 bits": post(b"/predict", b"").replace(b"Length: 0", b"Length: " + b"9" * 30),
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "a Host that is none": b"GET /livez HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "a folded line": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a bare LF": b"GET /livez HTTP/1.1\nHost: x\n\n",
    "a bare LF after a header": b"GET /livez HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "a bare CR": b"GET /livez HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
    "a NUL": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    "a space before the colon": b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n",
    "a space before the first header": b"GET /livez HTTP/1.1\r\n Host: x\r\n\r\n",
    "a chunk's size with a sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size with 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size that overflows": CHUNKED + b"1" + b"0" * 16 + b"\r\nabc\r\n0\r\n\r\n",
    "a chunk that is longer than its size": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "a bare LF in a chunk's extension": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "a bare CR in a chunk's extension": CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a bare LF after a chunk's size": CHUNKED + b"3\nabc\n0\n\n",
    "a length among the trailers": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_where_a_request_ends_is_beyond_doubt_or_it_is_refused_and_nothing_after_it_is_run(
    server: Server, sent: bytes
) -> None:
    assert answers(server, sent + LIVE) == [400]
    assert answers(server, *(sent[at : at + 40] for at in range(0, min(len(sent), 400), 40)), sent[400:]) == [400]
    assert answers(server, LIVE + sent + LIVE) == [200, 400]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", 501),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 501),
        (LIVE.replace(b"1.1", b"2.0"), 505),
        (b"GET /livez\r\n\r\n", 505),
    ],
)
def test_what_this_server_does_not_speak_is_refused(server: Server, sent: bytes, code: int) -> None:
    assert answers(server, sent + LIVE) == [code]


@pytest.mark.parametrize(
    "sent",
    [
        LIVE.replace(b"1.1\r\nHost: x", b"1.0"),
        LIVE.replace(b"/livez", b"http://y/livez"),
        LIVE.replace(b"Host: x", b"Host:"),
        LIVE.replace(b"Host: x", b"Host: [::1]:80"),
        b"\r\n" + LIVE,
    ],
)
def test_what_is_unusual_and_right_is_answered(server: Server, sent: bytes) -> None:
    assert answers(server, sent)[0] == 200


def test_a_refused_request_is_told_why_and_is_in_log_and_metrics(server: Server) -> None:
    with socket.create_connection(address(server), timeout=20) as connection:
        connection.sendall(AMBIGUOUS["no Host"])
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        problem = json.loads(answer.read())
        assert connection.recv(1) == b""
    assert (answer.status, answer.getheader("content-type")) == (400, "application/problem+json")
    assert (answer.getheader("connection"), problem["detail"]) == ("close", "A request has one header Host.")
    logged = [line for line in server.log() if line.get("request_id") == problem["request_id"]]
    assert [line["code"] for line in logged] == [400]
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'leukdetect_requests_total{code="400",reason="bad-request",route="other"}' in metrics


def test_a_trailer_is_no_header(with_keys: Server) -> None:
    assert answers(with_keys, CHUNKED + b"%x\r\n%s\r\n0\r\nX-API-Key: key\r\n\r\n" % (len(BLUE), BLUE)) == [401, 200]


def test_pipelined_requests_are_answered_once_each_in_order(server: Server) -> None:
    image, nothing = post(b"/predict", BLUE), LIVE.replace(b"/livez", b"/nothing")
    assert answers(server, (image + nothing + LIVE) * 30) == [200, 404, 200] * 30 + [200]


# --- an answer that comes early is not lost -------------------------------------------------------------------------

EARLY = [
    ("/predict", {}, 413),
    ("/nothing", {}, 404),
    ("/v2/nothing", {}, 404),
    ("/livez", {}, 405),
    ("/predict", {"Content-Encoding": "gzip"}, 415),
    ("/predict", {"Connection": "close"}, 413),
]


class Http10(http.client.HTTPConnection):
    _http_vsn_str = "HTTP/1.0"


@pytest.mark.parametrize(("path", "headers", "code"), EARLY)
def test_clients_that_read_when_all_is_sent_get_the_answer(
    server: Server, path: str, headers: dict[str, str], code: int
) -> None:
    for _ in range(5):
        request = urllib.request.Request(server.url + path, OVER_LONG, headers)
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=20)
        assert raised.value.code == code
        raised.value.close()
        assert httpx.post(server.url + path, content=OVER_LONG, headers=headers).status_code == code
        old = Http10(*address(server), timeout=20)
        old.request("POST", path, OVER_LONG, headers)
        assert old.getresponse().status == code
        old.close()


def test_so_do_clients_without_a_key_or_over_their_rate(with_keys: Server) -> None:
    codes = []
    for key in ("key", "key", "other"):
        request = urllib.request.Request(f"{with_keys.url}/predict", OVER_LONG, {"X-API-Key": key})
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=20)
        codes.append(raised.value.code)
        raised.value.close()
    assert codes == [413, 429, 401]


def test_so_do_clients_that_find_no_room(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    with running(tmp_path, "--model", str(tmp_path / "m.onnx"), "--max-buffered-bytes", "1000000") as server:
        for _ in range(5):
            with pytest.raises(urllib.error.HTTPError) as raised:
                urllib.request.urlopen(f"{server.url}/predict", bytes(15_000_000), timeout=20)
            assert raised.value.code == 503
            raised.value.close()


def test_the_answer_to_a_head_that_is_too_long_is_not_lost_either(server: Server) -> None:
    with socket.create_connection(address(server), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 431 ")


def test_where_the_body_was_not_asked_for_nothing_that_follows_is_run(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 25000000\r\n\r\n"
    with socket.create_connection(address(server), timeout=20) as connection:
        connection.sendall(head)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.read()
        assert (answer.status, answer.getheader("connection")) == (413, "close")
        connection.sendall(LIVE)
        assert connection.recv(1) == b""
    small = head.replace(b"25000000", b"%d" % len(BLUE))
    assert answers(server, small, BLUE) == [200, 200]
    assert answers(server, small.replace(b"1.1", b"1.0"), BLUE) == [200]


def test_curl_with_its_defaults_for_large_uploads_and_with_http2(server: Server, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    require(curl, "curl is not installed")
    assert curl
    (tmp_path / "long").write_bytes(OVER_LONG)
    (tmp_path / "blue.jpg").write_bytes(BLUE)
    for flag in ("--http1.1", "--http2", "--http1.0"):
        for name, code in (("long", "413"), ("blue.jpg", "200")):
            command = [curl, "-s", flag, "-o", "/dev/null", "-w", "%{http_code}", "-F", f"file=@{tmp_path / name}"]
            assert subprocess.check_output([*command, f"{server.url}/predict"], text=True, timeout=60) == code


# --- limits -----------------------------------------------------------------------------------------------------------

HOST = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
TOO_LONG = {
    "one header": (HOST + b"A: " + b"a" * (2 * MAX_HEAD_BYTES), 431),
    "many headers": (HOST + b"A: aaaaaaaaaaaaaaaaaaaaaa\r\n" * (MAX_FIELDS + 1) + b"\r\n", 431),
    "short lines without end": (HOST + b"a:\r\n" * MAX_HEAD_BYTES, 431),
    "an URL": (b"GET /" + b"a" * (2 * MAX_HEAD_BYTES), 414),
    "a whole URL": (LIVE.replace(b"/livez", b"/" + b"a" * (2 * MAX_HEAD_BYTES)), 414),
    "a trailer": (CHUNKED + b"0\r\nA: " + b"a" * (2 * MAX_HEAD_BYTES), 431),
    "trailers": (CHUNKED + b"0\r\n" + b"A: a\r\n" * MAX_HEAD_BYTES, 431),
    "a chunk's extension": (CHUNKED + b"1;" + b"a" * (2 * MAX_HEAD_BYTES), 431),
    "many extensions": (CHUNKED + (b"1;" + b"a" * 60_000 + b"\r\nx\r\n") * 4, 431),
    "a handshake": (HOST + WEBSOCKET + b"A: " + b"a" * (2 * MAX_HEAD_BYTES), 431),
}


@pytest.mark.parametrize(("sent", "code"), TOO_LONG.values(), ids=TOO_LONG)
def test_all_that_is_no_body_is_limited(server: Server, sent: bytes, code: int) -> None:
    assert answers(server, sent) == [code]
    assert answers(server, sent[:1000], sent[1000:]) == [code]


def test_a_head_within_the_limits_is_read(server: Server) -> None:
    assert answers(server, HOST + b"A: " + b"a" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n") == [200, 200]
    assert answers(server, HOST + b"A: a\r\n" * (MAX_FIELDS - 1) + b"\r\n") == [200, 200]


def test_a_body_may_come_byte_by_byte(server: Server) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BLUE)
    assert answers(server, CHUNKED + chunks + b"0\r\n\r\n") == [200, 200]


LARGE_PAGE = LIVE.replace(b"/livez", b"/static/swagger-ui/swagger-ui-bundle.js")


def test_idle_connections_leave_descriptors_for_probes_and_predictions(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -n 64\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with running(tmp_path, "--model", str(tmp_path / "m.onnx"), python=python) as server, ExitStack() as stack:
        for number in range(100):
            idle = stack.enter_context(socket.socket())
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the system may take in all pages
            idle.settimeout(20)
            idle.connect(address(server))
            if number % 2:  # is sent pages, a file more, and does not read them
                idle.sendall(8 * LARGE_PAGE)
        busy_until = time.monotonic() + 5
        while "Too many connections" in httpx.post(f"{server.url}/predict", content=BLUE, timeout=20).text:
            assert time.monotonic() < busy_until  # while the system still takes pages in, none of them is idle
        for _ in range(10):
            begun = time.monotonic()
            assert httpx.get(f"{server.url}/livez", timeout=20).status_code == 200
            predicted = httpx.post(f"{server.url}/predict", content=BLUE, timeout=20)
            assert predicted.status_code == 200, predicted.text
            assert time.monotonic() - begun < HEAD_SECONDS  # before any of them is closed for its age
        open_files = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert open_files < 64


def test_memory_does_not_grow_with_refused_heads_and_handshakes(server: Server) -> None:
    handshake = HOST + WEBSOCKET + b"\r\n"
    long = HOST + b"A: aaaa\r\n" * 100_000

    def all_refused(times: int) -> None:
        for _ in range(times):
            assert answers(server, handshake * 20)[-1] == 200
            assert answers(server, long) == [431]

    all_refused(10)
    before = resident(server.process.pid)
    all_refused(40)
    assert resident(server.process.pid) - before < 16e6
