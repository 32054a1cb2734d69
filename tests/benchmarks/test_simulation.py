"""The simulated server against closed formulas (Lazowska et al. 1984, "Quantitative System Performance", 3 and 5)."""

import math
import random

import pytest

from benchmarks.simulation import LAWS, Draw, Layout, Work, simulate

ONE = Layout(1, 1, 1)


def fixed(seconds: float) -> Draw:
    return lambda rng: seconds


def exponential(mean: float) -> Draw:
    return lambda rng: rng.expovariate(1 / mean)


def test_a_lone_client_waits_for_nothing() -> None:
    work = Work(fixed(0.001), fixed(0.005), lambda threads, batch: fixed(0.08 / threads))
    for layout, seconds in ((ONE, 0.086), (Layout(1, 1, 4), 0.026), (Layout(1, 4, 1), 0.086)):
        result = simulate(layout, work, layout.servers, requests=100)
        assert result == pytest.approx((1 / seconds, seconds, seconds))


@pytest.mark.parametrize("clients", [2, 3, 8])
def test_a_core_that_always_has_work_answers_as_often_as_its_time_allows(clients: int) -> None:
    """The utilisation law, X = U/D, with U = 1."""
    work = Work(fixed(0.001), fixed(0.005), lambda threads, batch: fixed(0.04 * batch))
    assert simulate(ONE, work, clients).throughput == pytest.approx(1 / 0.046, rel=0.002)
    assert simulate(Layout(8, 1, 1), work, 8 * clients).throughput == pytest.approx(8 / 0.046, rel=0.002)


@pytest.mark.parametrize("sessions", [1, 2, 3])
def test_clients_that_think_before_they_ask_are_the_machine_repairman(sessions: int) -> None:
    """M/M/c//N (Kleinrock 1975, Queueing Systems 1, section 3.9). On cores enough, decoding is the thinking."""
    clients, service, thinking = 6, 0.02, 0.04
    weights = [
        math.perm(clients, n) * (service / thinking) ** n / math.prod(min(i, sessions) for i in range(1, n + 1))
        for n in range(clients + 1)
    ]
    asked = sum(n * weight for n, weight in enumerate(weights)) / sum(weights)
    work = Work(fixed(0), exponential(thinking), lambda threads, batch: exponential(service), lambda threads: 1.0)
    result = simulate(Layout(1, sessions, 64), work, clients, requests=40_000, most=1)
    assert result.throughput == pytest.approx((clients - asked) / thinking, rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_it_keeps_littles_law_and_the_asymptotic_bounds(seed: int) -> None:
    """N = X·R, and X ≤ min(N/D, 1/Dmax) of each station and of the cores."""
    rng = random.Random(seed)
    loop, decode, model = (rng.uniform(1e-4, most) for most in (0.002, 0.01, 0.1))
    layout = Layout(rng.choice((1, 2)), rng.choice((1, 2, 8)), rng.choice((1, 2, 4)))
    clients = layout.servers * rng.choice((1, 3, 20))
    work = Work(fixed(loop), fixed(decode), lambda threads, batch: fixed(model / threads * batch))
    result = simulate(layout, work, clients, requests=8000)
    assert result.throughput * result.mean == pytest.approx(clients, rel=0.02)
    bounds = (
        clients / (loop + decode + model / layout.threads),
        layout.cores / (loop + decode + model),
        layout.servers / loop,
        layout.cores / model,
    )
    assert 0.5 * min(bounds) < result.throughput < 1.01 * min(bounds)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_goes_through_what_was_measured_at_one_and_two_threads(name: str) -> None:
    law = LAWS[name]
    for two in (0.5, 0.55, 0.9):
        assert (law(two, 1), law(two, 2)) == pytest.approx((1, two))
    assert law(0.5, 64) == pytest.approx(1 / 64)


def test_the_laws_lie_in_their_order() -> None:
    for threads in (4, 16, 64):
        coherency, contention, doubling = (law(0.55, threads) for law in LAWS.values())
        assert coherency > contention > doubling
    assert LAWS["contention"](0.55, 64) == pytest.approx(0.1 + 0.9 / 64)  # Amdahl's own form
