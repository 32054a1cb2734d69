"""Generates HTTP load at little cost, since it shares the processors with the server that it measures.

Closed loop: each of a number of clients sends its next request once the last is answered. Open loop: requests arrive on
a schedule, however slow the answers, and latency counts from the planned arrival (no coordinated omission: Tene 2015,
"How NOT to measure latency"). A client hangs up at its deadline, as a real one would.
"""

import asyncio
import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httptools
import numpy as np

OK = 200
GAVE_UP, BROKEN = 0, -1  # in place of a status: no answer by the deadline; the connection failed
REFUSED = frozenset({429, 503})  # refused at once, which costs the client nothing


@dataclass(frozen=True)
class Answer:
    """How one request ended. Latency in seconds, from its planned arrival in an open loop."""

    status: int
    latency: float
    body: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """All answers of a run, and the seconds that it took."""

    answers: tuple[Answer, ...]
    seconds: float

    def summary(self, deadline: float = math.inf) -> dict[str, Any]:
        """Rates in 1/s, latencies in ms; a latency is None where no such request was accepted.

        `goodput` counts 200s within the deadline. Percentiles are of accepted requests, those that were not refused;
        one that got no answer in time counts as infinitely slow and shows as None.
        """
        accepted = sorted(a.latency if a.status == OK else math.inf for a in self.answers if a.status not in REFUSED)
        good = sum(a.status == OK and a.latency <= deadline for a in self.answers)
        return {
            "n": len(self.answers),
            "seconds": round(self.seconds, 3),
            "throughput": round(sum(a.status == OK for a in self.answers) / self.seconds, 3),
            "goodput": round(good / self.seconds, 3),
            **{f"p{q}": _milliseconds(percentile(accepted, q)) for q in (50, 95, 99)},
            "statuses": {str(status): n for status, n in sorted(Counter(a.status for a in self.answers).items())},
        }


def percentile(ordered: Sequence[float], q: float) -> float:
    """The smallest value that at least `q` % of the sorted values do not exceed (nearest rank); NaN of none."""
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] if ordered else math.nan


def poisson(rate: float, n: int, seed: int) -> list[float]:
    """The first `n` arrival times, in seconds, of a Poisson process of `rate` 1/s."""
    arrivals: list[float] = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n)).tolist()
    return arrivals


def post(path: str, content_type: str, body: bytes, headers: str = "") -> bytes:
    """A whole HTTP/1.1 request. `headers`: more lines, each with its CRLF."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


async def closed_loop(
    port: int, requests: Sequence[bytes], *, clients: int, n: int, seconds: float = math.inf, deadline: float = 30
) -> Outcome:
    """Sends the requests in turn, `n` in all or for `seconds`; each client sends one after another."""
    answers: list[Answer] = []
    turns = _turns(requests, n)
    started = time.perf_counter()

    async def client() -> None:
        connection = Connection()
        for request in turns:
            if time.perf_counter() - started > seconds:
                break
            answers.append(await connection.ask(port, request, time.perf_counter(), deadline))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return Outcome(tuple(answers), time.perf_counter() - started)


async def open_loop(port: int, requests: Sequence[bytes], arrivals: Sequence[float], *, deadline: float) -> Outcome:
    """Sends the requests in turn, one at each arrival time (ascending, seconds), on an idle connection or a new one.

    The outcome's seconds end with the last good answer, so that a backlog does not inflate the rate.
    """
    idle: deque[Connection] = deque()
    started = time.perf_counter()

    async def one(request: bytes, planned: float) -> Answer:
        connection = idle.pop() if idle else Connection()
        answer = await connection.ask(port, request, planned, deadline)
        idle.append(connection)
        return answer

    tasks = []
    for arrival, request in zip(arrivals, _turns(requests, len(arrivals)), strict=True):
        if (wait := started + arrival - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(request, started + arrival)))
    answers = await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    ends = (arrival + a.latency for arrival, a in zip(arrivals, answers, strict=True) if a.status == OK)
    return Outcome(tuple(answers), max([arrivals[-1], *ends]))


class Connection(asyncio.Protocol):
    """A connection to a local port: kept alive, opened again when need be, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[int] | None = None
        self._parser: Any = None
        self._body = bytearray()

    async def ask(self, port: int, request: bytes, since: float, deadline: float) -> Answer:
        """Sends a whole request and waits for the whole answer until `deadline` seconds after `since`."""
        loop = asyncio.get_running_loop()
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        try:
            async with asyncio.timeout(max(0.0, since + deadline - time.perf_counter())):
                if self._transport is None:
                    await loop.create_connection(lambda: self, "127.0.0.1", port)
                assert self._transport is not None
                self._answered = loop.create_future()
                self._transport.write(request)
                status = await self._answered
        except TimeoutError:
            self.close()
            status = GAVE_UP
        except OSError:
            self.close()
            status = BROKEN
        return Answer(status, time.perf_counter() - since, bytes(self._body))

    def close(self) -> None:
        """Hangs up at once; the next request opens a connection."""
        if self._transport is not None:
            self._transport.abort()
        self._transport, self._answered = None, None

    # asyncio calls these …

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionAbortedError(str(error)))

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionResetError())

    # … and httptools these.

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if self._answered is None or self._answered.done():
            return
        self._answered.set_result(self._parser.get_status_code())
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
            self._transport = None

    def _fail(self, error: OSError) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


def _turns(requests: Sequence[bytes], n: int) -> Iterator[bytes]:
    return itertools.islice(itertools.cycle(requests), n)


def _milliseconds(seconds: float) -> float | None:
    return round(seconds * 1000, 3) if math.isfinite(seconds) else None
