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

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Takes so many bytes; raises ProblemError (503) where they would be too many together."""
        with self._lock:
            self.check(count)
            self.held += count

    def check(self, count: int) -> None:
        """Raises as `take` would."""
        if self.held + count > self.most:
            raise overloaded("Requests hold all the memory that they may. Try again in a second.")

    def keep(self, count: int) -> None:
        """Counts what is there already, such as an answer that waits to be read: who comes next has to wait for it."""
        with self._lock:
            self.held += count

    def give_back(self, count: int) -> None:
        """Frees what was taken."""
        self.keep(-count)

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """As `take`, for the block."""
        self.take(count)
        try:
            yield
        finally:
            self.give_back(count)


def left() -> int:
    """What the container's limit, the machine and the address space leave to requests."""
    page = resource.getpagesize()
    try:
        limit = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
        size = int(Path("/proc/self/statm").read_text().split()[0]) * page
    except OSError:  # not Linux
        return 2**31
    for path in _LIMITS:
        try:
            limit = min(limit, int(Path(path).read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    found = limit - OWN
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        found = min(found, addresses - size)
    return max(LEAST, found)
