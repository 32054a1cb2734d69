"""Starts the real server, as a process of its own, for a test to talk to."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]


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


@contextmanager
def running(folder: Path, *flags: str, python: str | Path = sys.executable) -> Iterator[Server]:
    """Runs `python -m serving FLAGS` on a free loopback port until the block ends; its log goes to `folder`."""
    log_file = folder / "server.log"
    command = [python, "-m", "serving", "--port", "0", "--cache-dir", str(folder / "cache"), *flags]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, cwd=ROOT)
    try:
        yield Server(_url(process, log_file), process, log_file)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _url(process: subprocess.Popen[bytes], log_file: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log_file.read_text().splitlines():
            if "Uvicorn running on" in line:
                url = json.loads(line)["message"].split()[3]
                assert httpx.get(f"{url}/readyz").status_code == 200
                return url
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log_file.read_text()}")
