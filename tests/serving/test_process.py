"""The server as a process: how it starts, what it logs, how it stops."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests import tiny_model
from tests.server import ROOT, running

BLUE = tiny_model.jpeg((60, 60, 200))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    return path


def test_the_log_is_json_that_names_requests_and_nothing_of_an_upload(model_file: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model", str(model_file)) as server:
        form = {"file": ("Jane-Doe-1980.jpg", BLUE, "image/jpeg")}
        answer = httpx.post(f"{server.url}/predict", files=form)
        httpx.post(f"{server.url}/predict", files={"file": ("Jane-Doe-1980.jpg", BLUE[:300])})
        httpx.get(f"{server.url}/Jane-Doe-1980")
        httpx.get(f"{server.url}/livez")
        assert server.stop() == 0
        lines = [line for line in server.log() if line["message"] == "request"]
    routes = [(line["route"], line["code"]) for line in lines]
    assert routes == [("/predict", 200), ("/predict", 422), ("other", 404)]
    assert lines[0]["request_id"] == answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "Jane" not in server.log_file.read_text()


def test_sigterm_lets_a_request_in_flight_finish_and_exits_0(model_file: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model", str(model_file)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(BLUE)}\r\n\r\n"
            connection.sendall(head.encode() + BLUE[:100])
            httpx.get(f"{server.url}/livez")  # by now the server has seen the first half
            server.process.terminate()
            with httpx.Client(base_url=server.url) as client:
                while client.get("/readyz").status_code == 200:  # load balancers see it first
                    time.sleep(0.01)
                answer = client.post("/predict", content=BLUE)  # and what they still send is answered
                assert (answer.status_code, answer.headers["connection"]) == (200, "close")
                assert client.get("/health").json()["status"] == "stopping"
            wait_until_closed(server.url)  # then nobody new comes in
            assert server.process.poll() is None
            connection.sendall(BLUE[100:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert server.process.wait(timeout=20) == 0


def wait_until_closed(url: str) -> None:
    while True:
        try:
            httpx.get(f"{url}/livez")
        except httpx.TransportError:
            return
        time.sleep(0.05)


def test_several_workers_share_the_port_and_add_their_metrics_up(model_file: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model", str(model_file), "--workers", "2") as server:
        for _ in range(40):  # each on a connection of its own, so that both are asked
            assert httpx.post(f"{server.url}/predict", content=BLUE).status_code == 200
        metrics = httpx.get(f"{server.url}/metrics").text.splitlines()
        assert 'leukdetect_predictions_total{class="pre",version=""} 40.0' in metrics
        assert "leukdetect_best_batch" in "\n".join(metrics)
        pids = {line["pid"] for line in server.log() if line["message"] == "request"}
        assert len(pids) == 2
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "nothing.onnx"], "error: nothing.onnx is no file; name an .onnx file or a registry alias"),
        (["--model", "params.yaml"], "error: file: onnxruntime cannot open params.yaml"),
        (["--tls-key", "params.yaml"], "error: Value error, tls_certificate and tls_key go together"),
        (
            ["--tls-certificate", "params.yaml", "--tls-key", "nothing.pem"],
            "error: params.yaml and nothing.pem make no certificate",
        ),
        (["--port", "http"], "error: port: Input should be a valid integer"),
        (
            ["--mlflow-tracking-uri", "sqlite:////nowhere/mlflow.db"],
            "error: there is no registry at /nowhere/mlflow.db",
        ),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving", "--cache-dir", str(tmp_path), *flags]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.startswith(message)
    assert len(run.stderr.splitlines()) == 1


def test_help_describes_every_setting() -> None:
    run = subprocess.run([sys.executable, "-m", "serving", "--help"], cwd=ROOT, capture_output=True, text=True)
    for flag in ("--model", "--precision", "--tracking-uri", "--cache-dir", "--max-body-bytes", "--queue-size"):
        assert flag in run.stdout
