"""What the benchmarks rest on: the laws of their load generator (benchmarks/load.py), against a server on a socket."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import load

REQUEST = load.post("/", "image/jpeg", b"x" * 100_000)
Handler = Callable[[int], Awaitable[bytes]]  # a request's number to the answer


class HangUp(Exception):
    """Says so much, then closes the connection."""


def run(handler: Handler, loop: Callable[[int], Awaitable[load.Outcome]]) -> tuple[load.Outcome, int]:
    """The outcome of a load on a server that answers as `handler` says, and how many connections it took."""
    numbers, connections = iter(range(10**6)), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                writer.write(await handler(next(numbers)))
                await writer.drain()
        except HangUp as last:
            writer.write(*last.args)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def both() -> load.Outcome:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        outcome = await loop(server.sockets[0].getsockname()[1])
        server.close()
        return outcome

    return asyncio.run(both()), connections


def answer(status: int = 200, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def closed(clients: int, n: int, deadline: float = 30) -> Callable[[int], Awaitable[load.Outcome]]:
    return lambda port: load.closed_loop(port, [REQUEST], clients=clients, n=n, deadline=deadline)


def test_a_closed_loop_sends_just_n_requests_and_keeps_its_connections() -> None:
    async def handler(number: int) -> bytes:
        return answer(body=str(number).encode())

    outcome, connections = run(handler, closed(clients=3, n=20))
    assert sorted(int(each.body) for each in outcome.answers) == list(range(20))
    assert connections == 3


def test_a_closed_loop_has_no_more_in_flight_than_clients() -> None:
    now, most = 0, 0

    async def handler(_: int) -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return answer()

    run(handler, closed(clients=4, n=40))
    assert most == 4


def test_an_open_loop_counts_latency_from_the_planned_arrival() -> None:
    """A server that stalls the whole process for a while: those who arrive meanwhile have waited, too."""

    async def handler(number: int) -> bytes:
        if number == 0:
            until = asyncio.get_running_loop().time() + 0.3
            while asyncio.get_running_loop().time() < until:  # blocks the client as well: no arrival is on time
                pass
        return answer()

    arrivals = [0.0, 0.05, 0.1, 0.15]
    outcome, _ = run(handler, lambda port: load.open_loop(port, [REQUEST], arrivals, deadline=5))
    for arrival, each in zip(arrivals, outcome.answers, strict=True):
        assert each.latency >= 0.3 - arrival


def test_an_open_loop_does_not_wait_for_answers() -> None:
    waiting = 0

    async def handler(_: int) -> bytes:
        nonlocal waiting
        waiting += 1
        while waiting < 20:  # nobody is answered before all have asked
            await asyncio.sleep(0.001)
        return answer()

    outcome, _ = run(handler, lambda port: load.open_loop(port, [REQUEST], [0.0] * 20, deadline=30))
    assert outcome.summary()["statuses"] == {"200": 20}


def test_who_gets_no_answer_by_the_deadline_gives_up_and_asks_again_on_a_new_connection() -> None:
    async def handler(number: int) -> bytes:
        if number == 0:
            await asyncio.sleep(3600)  # no Event: held by nobody else, it is collected as garbage with its task
        return answer()

    outcome, connections = run(handler, closed(clients=1, n=2, deadline=2))
    assert [each.status for each in outcome.answers] == [load.GAVE_UP, 200]
    assert outcome.answers[0].latency >= 2
    assert connections == 2


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_connection_that_breaks_or_talks_nonsense_is_no_answer(said: bytes) -> None:
    async def handler(_: int) -> bytes:
        raise HangUp(said)

    outcome, _ = run(handler, closed(clients=1, n=1, deadline=5))
    assert [each.status for each in outcome.answers] == [load.BROKEN]


def test_refused_requests_are_no_throughput_and_no_latency_and_late_ones_are_infinitely_slow() -> None:
    fine = [load.Answer(200, 0.1)] * 96
    refused, late = [load.Answer(503, 0.001)] * 100, [load.Answer(load.GAVE_UP, 2.0)] * 4
    summary = load.Outcome((*fine, *refused, *late), seconds=10).summary(deadline=2)
    assert summary["goodput"] == summary["throughput"] == 9.6
    assert summary["p95"] == 100
    assert summary["p99"] is None


def test_goodput_leaves_out_answers_beyond_the_deadline() -> None:
    summary = load.Outcome((load.Answer(200, 1.9), load.Answer(200, 2.1)), seconds=1).summary(deadline=2)
    assert (summary["throughput"], summary["goodput"]) == (2, 1)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], q: float) -> None:
    found = load.percentile(sorted(values), q)
    assert found in values
    assert sum(value <= found for value in values) >= q / 100 * len(values) - 1e-9
    assert sum(value < found for value in values) < q / 100 * len(values)


def test_there_is_no_percentile_of_nothing() -> None:
    assert math.isnan(load.percentile([], 50))


def test_poisson_arrivals_are_those_of_their_seed_and_rate() -> None:
    arrivals = load.poisson(50, 20_000, seed=1)
    gaps = np.diff(arrivals)
    assert arrivals == load.poisson(50, 20_000, seed=1)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)  # of an exponential distribution, as the mean
