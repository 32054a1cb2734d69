"""The memory that requests may hold together, so that the limit of the process covers it whatever clients send."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.problems import overloaded

OWN = 800_000_000  # bytes of a server with ResNet-50 that answers nobody, and of the processes that change its model
LEAST = 100_000_000  # a server with less could not decode a photograph
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroup v2 and v1


class Budget:
    """Bytes of heads, bodies, pixels being decoded, explanations and unread answers, over all requests."""

    def __init__(self, most: int, here: int | None = None) -> None:
        """`here`: what is held in this process has a limit of its own, where its address space is limited."""
        self.most = most
        self.held = 0
        self._most_here, self._apart = most if here is None else min(here, most), 0
        self._lock = threading.Lock()

    def take(self, count: int, *, apart: bool = False) -> None:
        """Takes so many bytes, `apart`: by another process. Raises ProblemError (503) where that is too much."""
        with self._lock:
            self.check(count, apart=apart)
            self.held += count
            self._apart += count * apart

    def check(self, count: int, *, apart: bool = False) -> None:
        """Raises as `take` would."""
        here = not apart and self.held - self._apart + count > self._most_here
        if here or self.held + count > self.most:
            raise overloaded("Requests hold all the memory that they may. Try again in a second.")

    def give_back(self, count: int, *, apart: bool = False) -> None:
        """Frees what was taken."""
        with self._lock:
            self.held -= count
            self._apart -= count * apart

    def keep(self, count: int) -> None:
        """Counts what is there already, such as an answer that waits to be read: who comes next has to wait for it."""
        self.give_back(-count)

    @contextmanager
    def taken(self, count: int, *, apart: bool = False) -> Iterator[None]:
        """As `take`, for the block."""
        self.take(count, apart=apart)
        try:
            yield
        finally:
            self.give_back(count, apart=apart)


def made(most: int | None) -> Budget:
    """The budget of this process: `most`, or what its surroundings leave."""
    return Budget(most or left(), addresses())


def addresses() -> int | None:
    """What is left of this process's address space; None: it is not limited."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return max(LEAST, limit - size)


def left() -> int:
    """What the container's limit and the machine leave to requests."""
    try:
        limit = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    except OSError:  # not Linux
        return 2**31
    for path in _LIMITS:
        try:
            limit = min(limit, int(Path(path).read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return max(LEAST, limit - OWN)
