"""TLS by certificate files: the real process, with a certificate that signs itself."""

import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest

from tests import tiny_model
from tests.conftest import require
from tests.server import running


def test_with_a_certificate_the_server_speaks_https_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("openssl"), "there is no openssl to make a certificate with")
    certificate, key, model = (str(tmp_path / name) for name in ("certificate.pem", "key.pem", "m.onnx"))
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
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
