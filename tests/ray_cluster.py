"""A Ray cluster of two machines, as far as one machine can be: each a raylet with its own object store and workers.

Each has a loopback address of its own, which Linux gives without being asked. (For 127.0.0.1 Ray takes the machine's
outer one.)
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.process import free_port

RAY = Path(sys.executable).parent / "ray"
STORE = 100_000_000  # bytes of each node's object store; 75 MB is the least
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a-token-of-the-tests-which-is-no-secret-at-all",  # else it writes one below the user's home
    "RAY_raylet_start_wait_time_s": "120",  # of a machine with other work
}


class Node:
    """One of its machines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def workers(self) -> list[int]:
        """The processes that run a task at this moment."""
        return [pid for pid, title in _descendants(self.process.pid) if title.startswith("ray::on_a_worker")]

    def kill_a_worker(self) -> bool:
        """Whether one was running a task."""
        workers = self.workers()
        if workers:
            os.kill(workers[0], signal.SIGKILL)
        return bool(workers)

    def kill(self) -> None:
        """As a power failure would: raylet, workers and all, at once."""
        family = [pid for pid, _ in _descendants(self.process.pid)]
        for pid in (self.process.pid, *family):
            _kill(pid)
        self.process.wait()


class Cluster:
    """Nodes that know of one another; the first is the head."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.address = f"127.0.0.2:{free_port()}"
        self.nodes: list[Node] = []
        self._folder, self._stack = folder, stack

    def add(self, processors: int) -> Node:
        """One more machine, which is there when this returns."""
        number = len(self.nodes)
        where = ["--address", self.address]
        if number == 0:
            where = ["--head", "--port", self.address.split(":")[1], "--include-dashboard", "false"]
            where += ["--temp-dir", str(self._folder)]
        where += ["--node-ip-address", f"127.0.0.{2 + number}"]
        node = self._stack.enter_context(_node(self._folder / f"node-{number}.log", where, processors))
        self.nodes.append(node)
        return node


@contextmanager
def running(*processors: int) -> Iterator[Cluster]:
    """Yields a cluster with nodes of so many processors."""
    with ExitStack() as stack:
        # Sockets are made below it, whose paths may have 107 characters: not below pytest's folder.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)))
        cluster = Cluster(folder, stack)
        for count in processors:
            cluster.add(count)
        yield cluster


@contextmanager
def _node(log: Path, where: list[str], processors: int) -> Iterator[Node]:
    command = [str(RAY), "start", *where, "--num-cpus", str(processors)]
    command += ["--object-store-memory", str(STORE), "--disable-usage-stats", "--block"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, stdout=output, stderr=output, env=os.environ | VARIABLES, start_new_session=True
        )
    node = Node(process)
    try:
        deadline = time.monotonic() + 150
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield node
    finally:
        family = [pid for pid, _ in _descendants(process.pid)]
        process.kill()  # asked to stop, it would wait for half a minute
        process.wait()
        for pid in family:
            _kill(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[tuple[int, str]]:
    """Process ids and what each calls itself (Linux)."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has just ended
                continue
            children.setdefault(parent, []).append((int(entry.name), title))
    found, wanted = [], [root]
    while wanted:
        below = children.get(wanted.pop(), [])
        found += below
        wanted += [pid for pid, _ in below]
    return found
