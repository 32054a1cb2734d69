"""Starts the real server, as a process of its own or in a thread of the test's, for a test to talk to."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from tests.project import ROOT


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> list[dict[str, object]]:
        """What it has logged so far, one JSON object a line."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def stop(self) -> int:
        """Asks it to stop (SIGTERM) and returns its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)


def write_keys(path: Path, text: str) -> Path:
    """A keys file that its owner alone may read."""
    path.write_text(text)
    path.chmod(0o600)
    return path


@contextmanager
def running(folder: Path, *flags: str, python: str | Path = sys.executable, probe: str = "/readyz") -> Iterator[Server]:
    """Runs `python -m serving FLAGS` on a free loopback port until the block ends; its log goes to `folder`.

    `probe`: what must answer first; /livez for a server that waits for a model.
    """
    log_file = folder / "server.log"
    command = [python, "-m", "serving", "--port", "0", "--cache-dir", str(folder / "cache"), *flags]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, cwd=ROOT)
    try:
        yield Server(_url(process, log_file, probe), process, log_file)
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def serve(app: Starlette, at: tuple[str, int] = ("127.0.0.1", 0), **options: Any) -> Iterator[httpx.Client]:
    """Runs `app` in a thread, on a free loopback port. `options`: uvicorn's."""
    with socket.create_server(at) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            with httpx.Client(base_url=f"http://{at[0]}:{listener.getsockname()[1]}") as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def _url(process: subprocess.Popen[bytes], log_file: Path, probe: str) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log_file.read_text().splitlines():
            if "Uvicorn running on" in line:
                url = json.loads(line)["message"].split()[3]
                try:
                    if httpx.get(f"{url}{probe}").status_code == 200:
                        return url
                except httpx.ConnectError:
                    pass  # the port is bound a moment before it listens
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log_file.read_text()}")
