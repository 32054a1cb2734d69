"""The server as a process: how it starts, what it logs, how it stops."""

import fcntl
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from leukdetect.runtime import cpus
from serving.request.auth import Key, digest_of
from serving.settings import Settings
from tests import tiny_model
from tests.memory import resident
from tests.server import ROOT, running, write_keys

BLUE = tiny_model.jpeg((60, 60, 200))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    return path


def test_the_log_is_json_that_names_requests_and_nothing_of_an_upload_and_no_key(
    model_file: Path, tmp_path: Path
) -> None:
    write_keys(tmp_path / "keys", Key("ward", "predict", digest_of("Jane-key")).line())
    flags = ("--model", str(model_file), "--keys-file", str(tmp_path / "keys"))
    with running(tmp_path, *flags) as server:
        own = {"X-API-Key": "Jane-key", "X-Request-Id": "Jane-id", "User-Agent": "Jane-agent"}
        with httpx.Client(base_url=server.url, headers=own) as client:
            answer = client.post("/predict", files={"file": ("Jane-Doe-1980.jpg", BLUE, "image/jpeg")})
            client.post("/predict", files={"file": ("Jane-Doe-1980.jpg", BLUE[:300])})
            client.post("/predict", content=BLUE, headers={"X-API-Key": "Jane-guess"})
            client.post("/explain?class=Jane-Doe", content=BLUE)
            client.get("/Jane-Doe-1980")
            client.get("/livez")
        assert server.stop() == 0
        lines = [line for line in server.log() if line["message"] == "request"]
    routes = [(line["route"], line["code"]) for line in lines]
    assert routes == [("/predict", 200), ("/predict", 422), ("/predict", 401), ("/explain", 422), ("other", 404)]
    assert [line.get("key") for line in lines] == ["ward", "ward", None, "ward", None]  # by its name
    assert [line.get("model_version") for line in lines] == ["file", "file", None, "file", None]
    assert lines[0]["request_id"] == answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "Jane" not in server.log_file.read_text()


def test_an_image_is_kept_nowhere(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    large = tiny_model.jpeg((60, 60, 200), size=(2000, 1500))  # what others would spool to a disk
    with running(tmp_path, "--model", str(model_file)) as server:
        for path in ("/predict", "/predict/batch", "/explain"):
            assert httpx.post(f"{server.url}{path}", files={"file": large}, timeout=20).status_code == 200
        assert server.stop() == 0
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"server.log", "feedback.db"} <= {file.name for file in kept}
    assert not any(large[1000:1100] in file.read_bytes() for file in kept)
    assert sum(file.stat().st_size for file in kept) < len(large)


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


def test_sigterm_is_obeyed_that_comes_in_the_middle_of_a_log_line(model_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving", "--port", "0", "--cache-dir", str(tmp_path)]
    command += ["--model", str(model_file)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT, env=buffered) as process:
        try:
            assert process.stderr
            fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
            line = next(line for line in process.stderr if b"Uvicorn running on" in line)
            url = json.loads(line)["message"].split()[3]
            with suppress(httpx.ReadTimeout):  # the pipe is full: it waits to write its line
                for _ in range(1000):
                    httpx.post(f"{url}/predict", content=BLUE, timeout=2)
                pytest.fail("a thousand lines found room in the pipe")
            process.terminate()
            time.sleep(0.5)
            log = process.stderr.read().decode()  # room again, to the end
            assert '"stopping"' in log
            assert "Traceback" not in log
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_it_may_hold_as_many_connections_as_the_system_allows(model_file: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model", str(model_file)) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    [(soft, hard)] = re.findall(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
    assert soft == hard


def test_a_client_that_never_ends_its_request_holds_a_stop_up_to_the_drains_deadline_only(
    model_file: Path, tmp_path: Path
) -> None:
    flags = ("--model", str(model_file), "--grace-seconds", "0", "--drain-seconds", "1", "--read-seconds", "600")
    with running(tmp_path, *flags) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(10))
            httpx.get(f"{server.url}/livez")  # by now the server has seen it
            server.process.terminate()
            assert server.process.wait(timeout=60) == 0


def wait_until_closed(url: str) -> None:
    while True:
        try:
            httpx.get(f"{url}/livez")
        except httpx.TransportError:
            return
        time.sleep(0.05)


def test_the_metrics_tell_the_memory_and_the_threads_of_the_process(model_file: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model", str(model_file)) as server:
        metrics = httpx.get(f"{server.url}/metrics").text.splitlines()
        held = resident(server.process.pid)
    told = dict(line.rsplit(" ", 1) for line in metrics)
    assert float(told["leukdetect_threads"]) == cpus()
    assert float(told["leukdetect_resident_bytes"]) == pytest.approx(held, rel=0.2)


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
        (["--webhook-secret=s"], "error: webhook_secret: others see a flag in the process list"),
        (["--webhook-secret", "s"], "error: webhook_secret: others see a flag in the process list"),
        (["--mlflow-tracking-uri", "http://me:pw@h:1"], "error: a password: others see a flag in the process list"),
        (["--mlflow-tracking-uri=http://me:pw@h"], "error: a password: others see a flag in the process list"),
        (["--webhook-secret-file", "nothing"], "error: Value error, webhook_secret_file: nothing cannot be read"),
        (["--port", "http"], "error: port: Input should be a valid integer"),
        (["--feedback-db", ""], "error: feedback_db: is empty; give it a value, or unset it for its default"),
        (["--feedback-db", "tests"], "error: feedback_db: must be a file's path and not a folder's (it is 'tests')"),
        (["--keys-file", " "], "error: keys_file: is empty"),
        (["--watch-seconds", "inf"], "error: watch_seconds: Input should be a finite number"),
        (["--watch-seconds", "1e10"], "error: watch_seconds: Input should be less than or equal to"),
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


def test_settings_come_from_the_environment_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKDETECT_QUEUE_SIZE", "7")
    monkeypatch.setenv("LEUKDETECT_CORS_ORIGINS", '["https://lis.example"]')
    assert (Settings().queue_size, Settings().cors_origins) == (7, ["https://lis.example"])
    for name, wrong in (("QUEUE_SIZE", "0"), ("SHADOW_SHARE", "2"), ("PRECISION", "fp16"), ("WEBHOOK_SECRET", "")):
        with monkeypatch.context() as changed:
            changed.setenv(f"LEUKDETECT_{name}", wrong)
            with pytest.raises(ValidationError, match=name.lower()):
                Settings()


def test_the_webhooks_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    monkeypatch.setenv("LEUKDETECT_WEBHOOK_SECRET_FILE", str(file))
    file.write_text("s3cret\n")
    secret = Settings().webhook_secret
    assert secret
    assert secret.get_secret_value() == "s3cret"
    file.write_text("\n")
    with pytest.raises(ValidationError, match="webhook_secret"):
        Settings()
    monkeypatch.setenv("LEUKDETECT_WEBHOOK_SECRET", "another")
    with pytest.raises(ValidationError, match="both set"):
        Settings()


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_setting_is_an_error_that_names_it(name: str, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alias = Settings.model_fields[name].validation_alias
    variable = alias if isinstance(alias, str) else f"LEUKDETECT_{name.upper()}"
    monkeypatch.setenv(variable, empty)
    with pytest.raises((ValidationError, SettingsError), match=alias if isinstance(alias, str) else name):
        Settings()


def test_a_list_that_is_no_json_is_one_message(tmp_path: Path) -> None:
    environment = os.environ | {"LEUKDETECT_CORS_ORIGINS": "https://lis.example"}
    command = [sys.executable, "-m", "serving", "--cache-dir", str(tmp_path), "--port", "0"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert re.fullmatch(r'error: .*"cors_origins".*it must be JSON \(.*\)\n', run.stderr)


def test_help_describes_every_setting() -> None:
    wide = os.environ | {"COLUMNS": "1000"}  # else lines are broken, at hyphens too
    command = [sys.executable, "-m", "serving", "--help"]
    run = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True)
    for name, setting in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in run.stdout
        assert setting.description
        assert setting.description in run.stdout


def test_a_connection_waits_for_its_next_request_as_long_as_the_setting_says(model_file: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model", str(model_file), "--keep-alive-seconds", "1") as server:
        client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=9)  # a head would have 10 s
        for _ in range(3):
            client.request("GET", "/livez")
            assert client.getresponse().read() == b'{"status":"ok"}'
            time.sleep(0.2)
        assert client.sock.recv(1) == b""
        client.close()
