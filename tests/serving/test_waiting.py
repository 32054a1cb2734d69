"""A server whose alias names no version yet: alive, not ready, and the server proper once there is one."""

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests import tiny_model
from tests.project import ROOT
from tests.registry import Registry
from tests.server import running


def test_it_waits_alive_and_not_ready_and_serves_the_first_version(a_registry: Registry, tmp_path: Path) -> None:
    flags = ("--model", "models:/leukdetect@staging", "--tracking-uri", a_registry.uri, "--watch-seconds", "0.2")
    with running(tmp_path, *flags, probe="/livez") as server:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            for path in ("/readyz", "/health", "/", "/metrics"):
                refused = client.get(path)
                assert refused.status_code == 503, path
                assert refused.headers["retry-after"] == "5"
            problem = client.post("/predict", content=tiny_model.jpeg((60, 60, 200))).json()
            assert problem["type"] == "urn:leukdetect:problem:no-model"
            assert "models:/leukdetect@staging names no version that can be served yet" in problem["detail"]
            assert client.head("/livez").status_code == 200
            time.sleep(1)  # a few questions: what does not change is said once
            said = [str(line["message"]) for line in server.log()]
            assert said.count("waiting for a first model") == 1

            a_registry.add("staging")
            deadline = time.monotonic() + 60
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline, server.log_file.read_text()
                time.sleep(0.1)
            assert client.get("/health").json()["model"]["version"] == "1"
            assert client.post("/predict", content=tiny_model.jpeg((60, 60, 200))).json()["class"] == "pre"
            assert "leukdetect_" in client.get("/metrics").text
        assert server.stop() == 0


def test_while_it_waits_it_stops_at_once(a_registry: Registry, tmp_path: Path) -> None:
    flags = ("--model", "models:/leukdetect@staging", "--tracking-uri", a_registry.uri)
    with running(tmp_path, *flags, probe="/livez") as server:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("model", "watch", "said"),
    [
        ("nothing.onnx", "15", r"nothing\.onnx is no file"),
        ("models:/leukdetect/3", "15", "names no registered model"),
        ("models:/leukdetect@staging", "0", "has no such alias"),
    ],
)
def test_what_no_waiting_mends_ends_it_with_the_reason(
    a_registry: Registry, tmp_path: Path, model: str, watch: str, said: str
) -> None:
    flags = ["--model", model, "--watch-seconds", watch, "--tracking-uri", a_registry.uri, "--port", "0"]
    command = [sys.executable, "-m", "serving", *flags, "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.search(said, done.stderr)
