"""Starts a server and measures the processor time and memory of its process and all descendants (Linux)."""

import http.client
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from leukdetect.runtime import processor

LAST_WORDS = 800  # characters of a log that an error quotes


class ServerError(Exception):
    """A server failed; the message quotes the end of its log."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    pid: int
    port: int
    seconds_to_ready: float  # since it was spawned

    def cpu_seconds(self) -> float:
        """User and system time of every process so far, including those that ended and were waited for."""
        return total(self.pid, lambda process: sum(process.cpu_times()[:4]))  # its own, and its ended children's

    def rss(self) -> float:
        """Resident bytes of every process, so shared pages count once for each."""
        return total(self.pid, lambda process: process.memory_info().rss)


def machine() -> dict[str, Any]:
    """The machine that it ran on."""
    facts = processor()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    return {
        "processor": facts.get("model name"),
        "instructions": [flag for flag in wanted if flag in facts.get("flags", "").split()],
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str | Path], port: int, ready: str, environment: Mapping[str, str], folder: Path, log: Path
) -> Iterator[Running]:
    """Runs a server until the block ends.

    Args:
        command: makes it listen on `port` of 127.0.0.1.
        ready: the path that answers 200 once it is ready.
        environment: in place of this process's own.
        folder: where it runs.
        log: where its output goes.

    Raises:
        ServerError: it ended, or was not ready within two minutes.
    """
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env=dict(environment), start_new_session=True
        )
    try:
        while not answers(port, ready):
            if process.poll() is not None or time.perf_counter() - started > 120:
                end = log.read_text(errors="replace")[-LAST_WORDS:]
                raise ServerError(f"it did not become ready (exit code {process.returncode}): …{end}")
            time.sleep(0.005)
        yield Running(process.pid, port, time.perf_counter() - started)
    finally:
        _stop(process)


def answers(port: int, path: str) -> bool:
    """Whether a GET gives 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def family(pid: int) -> list[psutil.Process]:
    """The process and all that came of it; none once it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def total(pid: int, measure: Callable[[psutil.Process], float]) -> float:
    """The sum over the process and all that came of it; one that ends meanwhile counts nothing."""
    found = 0.0
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            found += measure(process)
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to stop, then kills what is left: some servers leave child processes behind."""
    members = family(process.pid)
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in members:
        with suppress(psutil.NoSuchProcess):  # it has ended, and psutil sees where another has its number by now
            each.kill()
