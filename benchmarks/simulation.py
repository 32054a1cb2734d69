"""A server on a number of cores that are not at hand, simulated from measured service times.

A request passes three stations: the event loop (one at a time: HTTP, checks, JSON), decoding (a thread a core), and
the model (a thread a session, which takes up to BATCH of what waits). All share the server's cores as Linux would
share them: where they want more than there are, each gets an equal part. A closed loop of clients asks, each as soon
as it is answered.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

from benchmarks.load import percentile
from serving.inference.engine import BATCH

Draw = Callable[[random.Random], float]
MODEL = 2  # the last station


@dataclass(frozen=True)
class Work:
    """Seconds at each station on idle cores; a station's time may be drawn anew for each visit."""

    loop: Draw
    decode: Draw
    model: Callable[[int, int], Draw]  # of threads and batch
    width: Callable[[int], float] = float  # cores that a run of so many threads keeps busy


class Layout(NamedTuple):
    """Servers, each with its own cores, sessions and clients; the threads of a session."""

    servers: int
    sessions: int
    threads: int

    @property
    def cores(self) -> int:
        return self.servers * self.sessions * self.threads


class Result(NamedTuple):
    """Of all servers together."""

    throughput: float  # requests/s
    mean: float  # seconds from a request to its answer
    p95: float


def simulate(layout: Layout, work: Work, clients: int, requests: int = 4000, most: int = BATCH) -> Result:
    """`clients` are spread evenly over the servers, so that one, which answers `requests` once warm, stands for all."""
    mine, warm = clients // layout.servers, 4 * clients // layout.servers
    answers = list(islice(_answers(layout, work, mine, most), warm + requests))
    seconds = answers[-1][0] - answers[warm - 1][0]
    latencies = sorted(latency for _, latency in answers[warm:])
    return Result(layout.servers * requests / seconds, sum(latencies) / requests, percentile(latencies, 95))


def _answers(layout: Layout, work: Work, clients: int, most: int) -> Iterator[tuple[float, float]]:
    """Of one server: when it gives each answer, and how long that took."""
    cores, rng = layout.sessions * layout.threads, random.Random(0)  # noqa: S311 (no secret)
    free = [1, cores, layout.sessions]  # at each station
    waiting = [deque(range(clients)), deque[int](), deque[int]()]
    begun = [0.0] * clients
    clock = done = busy = 0.0  # `done`: seconds of work that each job has had since the beginning
    numbers = count()  # so that no two jobs compare equal
    running: list[tuple[float, int, int, list[int], float]] = []
    while True:
        for station, queue in enumerate(waiting):
            while queue and free[station]:
                batch = [queue.popleft() for _ in range(min(len(queue), most if station == MODEL else 1))]
                draw = work.model(layout.threads, len(batch)) if station == MODEL else (work.loop, work.decode)[station]
                width = work.width(layout.threads) if station == MODEL else 1.0
                heapq.heappush(running, (done + draw(rng), next(numbers), station, batch, width))
                free[station] -= 1
                busy += width
        before = done
        done, _, station, batch, width = heapq.heappop(running)
        clock += (done - before) * max(1.0, busy / cores)
        free[station] += 1
        busy -= width
        if station == MODEL:
            yield from ((clock, clock - begun[client]) for client in batch)
            for client in batch:
                begun[client] = clock
        waiting[(station + 1) % len(waiting)].extend(batch)


def measured(samples: Sequence[float]) -> Draw:
    """One of what was measured, each as likely."""
    return lambda rng: rng.choice(samples)


def contention(two: float, threads: int) -> float:
    """Seconds at `threads` threads for 1 at one and `two` at two: a part runs on one thread alone (Amdahl 1967)."""
    alone = min(1.0, max(0.0, 2 * two - 1))
    return alone + (1 - alone) / threads


def coherency(two: float, threads: int) -> float:
    """The same where each pair of threads costs the same (Gunther 2008, arXiv:0808.1431, with contention 0)."""
    pair = max(0.0, 2 * two - 1) / 2
    return (1 + pair * threads * (threads - 1)) / threads


def doubling(two: float, threads: int) -> float:
    """The same where each doubling of the threads gains what the first one gained."""
    return float(two ** math.log2(threads))


LAWS = {"coherency": coherency, "contention": contention, "doubling": doubling}
