"""Nothing of the product calls home: seen in a network namespace that has nothing but its own loopback."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_model
from tests.conftest import require
from tests.project import ROOT

# What a person runs on a model file, each until it is done; the server until it has answered and was stopped.
COMMANDS = {
    "library": """
import leukdetect
leukdetect.open("m.onnx").predict("x.jpg")
""",
    "server": """
import signal, subprocess, sys, time, urllib.request
server = subprocess.Popen([sys.executable, "-m", "serving", "--model", "m.onnx", "--port", "8123"])
for _ in range(600):
    try:
        urllib.request.urlopen("http://127.0.0.1:8123/readyz").read()
        break
    except OSError:
        time.sleep(0.1)
body = open("x.jpg", "rb").read()
assert urllib.request.urlopen("http://127.0.0.1:8123/predict", body).status == 200
time.sleep(2)
server.send_signal(signal.SIGTERM)
assert server.wait() == 0
""",
    "score": """
import runpy, sys
sys.argv = ["score", "images", "--model", "m.onnx", "--out", "scores"]
runpy.run_module("pipeline.score", run_name="__main__")
""",
    "stages": """
import pipeline.evaluate, pipeline.export, pipeline.register, pipeline.fetch
from leukdetect.runtime import open_session
open_session(__import__("pathlib").Path("m.onnx"))
""",
}
_ADDRESS = re.compile(r"(?:connect|sendto|sendmsg|sendmmsg)\(.*(AF_INET6?).*?(?:htons\((\d+)\)).*?\"([^\"]+)\"")


def seen_outside(trace: str) -> list[str]:
    """The addresses that were tried: all but the command's own on loopback. A resolver there is one, too."""
    found = [match.groups() for match in map(_ADDRESS.search, trace.splitlines()) if match]
    return [f"{host}:{port}" for _, port, host in found if port in ("53", "853") or host not in ("127.0.0.1", "::1")]


def run(folder: Path, code: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs code with a home of its own and no network; returns it, and what it tried to reach."""
    tools = [shutil.which("bwrap"), shutil.which("strace")]
    require(all(tools), "bwrap or strace is not installed")
    (folder / "home").mkdir()
    (folder / "images").mkdir()
    tiny_model.write(folder / "m.onnx")
    for place in (folder / "x.jpg", folder / "images/x.jpg"):
        place.write_bytes(tiny_model.jpeg((1, 2, 3)))
    trace = folder / "trace"
    command = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--chdir", str(folder)]
    command += ["strace", "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace), sys.executable, "-c"]
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    environment = kept | {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run([*command, code], env=environment, capture_output=True, text=True, timeout=300)
    may = "Operation not permitted" not in done.stderr and "Creating new namespace failed" not in done.stderr
    require(may, f"a network namespace or tracing is not allowed here: {done.stderr[:200]}")
    return done, trace.read_text() if trace.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_tries_to_reach_what_is_not_configured(name: str, tmp_path: Path) -> None:
    done, trace = run(tmp_path, COMMANDS[name])
    assert done.returncode == 0, done.stderr
    assert seen_outside(trace) == []
    assert not list((tmp_path / "home").rglob("*deviceid*"))


@pytest.mark.slow
def test_the_test_sees_a_name_that_is_asked_for(tmp_path: Path) -> None:
    _, trace = run(tmp_path, "import socket\ntry: socket.getaddrinfo('example.org', 443)\nexcept OSError: pass")
    resolver = re.search(r"^nameserver", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    require(resolver, "no resolver is configured here")
    assert seen_outside(trace)


@pytest.mark.slow
def test_onnxruntime_would_write_an_id_of_the_device(tmp_path: Path) -> None:
    """What is turned off; where it goes from onnxruntime, so may the variable."""
    run(tmp_path, COMMANDS["library"], ORT_DISABLE_TELEMETRY="0")
    assert list((tmp_path / "home").rglob("*deviceid*"))
