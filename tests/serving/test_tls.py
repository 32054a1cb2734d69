"""TLS by certificate files: the real process, with a certificate that signs itself."""

import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.request import handshakes
from serving.request.connections import Connection
from tests import tiny_model
from tests.conftest import require
from tests.server import running, serve


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A certificate and its key."""
    require(shutil.which("openssl"), "there is no openssl to make a certificate with")
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    return certificate, key


def test_with_a_certificate_the_server_speaks_https_and_nothing_else(
    tmp_path: Path, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (certificate, key), model = files, str(tmp_path / "m.onnx")
    tiny_model.write(Path(model))

    monkeypatch.setenv("SSL_CERT_FILE", certificate)  # what httpx trusts, here and where `running` asks
    with running(tmp_path, "--model", model, "--tls-certificate", certificate, "--tls-key", key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert httpx.get(f"{server.url}/readyz").json() == {"status": "ok"}
        assert httpx.post(f"{server.url}/predict", content=tiny_model.jpeg((60, 60, 200))).json()["class"] == "pre"

        for _ in range(5):  # an answer that comes early is not lost here either
            request = urllib.request.Request(f"{server.url}/predict", bytes(25_000_000))
            with pytest.raises(urllib.error.HTTPError, match="413"):
                urllib.request.urlopen(request, timeout=20)

        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/readyz")
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/readyz")

        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert httpx.get(f"{server.url}/readyz").status_code == 200  # unharmed by them
        assert server.stop() == 0


def test_handshakes_that_never_end_are_ended_and_others_go_on(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def alive(request: Request) -> Response:
        return Response(request.url.scheme)

    monkeypatch.setattr(handshakes, "SECONDS", 1.0)
    monkeypatch.setattr(handshakes, "MOST", 3)
    certificate, key = files
    app = Starlette(routes=[Route("/", alive)])
    options: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key, "backlog": 10}
    loop = "serving.request.handshakes:Loop"
    trusted = ssl.create_default_context(cafile=certificate)
    with serve(app, loop=loop, http=Connection, **options) as client, ExitStack() as opened:
        port = client.base_url.port
        trusting = opened.enter_context(httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted))
        assert trusting.get("/").text == "https"

        held = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(4)]
        for each in held:
            each.settimeout(0.7)
        assert ended(held[0])  # the fourth took its place
        assert httpx.get(f"https://127.0.0.1:{port}/", verify=trusted).text == "https"
        for dripping in range(20):
            with suppress(OSError):
                held[3].send(b"\x16\x03\x01\x01\x00"[dripping : dripping + 1])
            time.sleep(0.1)
        assert all(map(ended, held))
        assert trusting.get("/").text == "https"


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True
