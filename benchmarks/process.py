"""Starts a server and measures the processor time and memory of its process and all descendants (Linux)."""

import http.client
import os
import platform
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukdetect.runtime import processor

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = 1 / os.sysconf("SC_CLK_TCK")
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
        return sum(sum(map(int, stat[11:15])) for stat in _tree(self.pid).values()) * TICK

    def rss(self) -> int:
        """Resident bytes of every process, so shared pages count once for each."""
        return sum(int(stat[21]) for stat in _tree(self.pid).values()) * PAGE


def machine() -> dict[str, Any]:
    """The machine that it ran on."""
    facts = processor()
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    return {
        "processor": facts.get("model name"),
        "instructions": [flag for flag in wanted if flag in facts.get("flags", "").split()],
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
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


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to stop, then kills what is left: some servers leave child processes behind."""
    family = _tree(process.pid)
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    now = _processes()
    for pid, stat in family.items():
        if pid in now and now[pid][19] == stat[19]:  # the start time: another process may have the number by now
            os.kill(pid, 9)


def _tree(root: int) -> dict[int, list[str]]:
    """The fields of /proc/PID/stat after the name, of `root` and its descendants: field n of proc(5) is at n - 3."""
    processes = _processes()
    children = defaultdict(list)
    for pid, stat in processes.items():
        children[int(stat[1])].append(pid)
    found, wanted = {}, [root]
    while wanted:
        pid = wanted.pop()
        if pid in processes:
            found[pid] = processes[pid]
            wanted.extend(children[pid])
    return found


def _processes() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    return found
