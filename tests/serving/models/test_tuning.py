"""How threads and the largest batch are chosen, on pretended machines whose times are known."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.models import tuning
from serving.models.tuning import BUDGET, RUNS, Tuning

Seconds = Callable[[int, int], float]  # an image, by number of threads and size of the batch


class Machine:
    """Its clock goes on only while a model runs; a session is its number of threads."""

    def __init__(self, seconds: Seconds, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.opened: list[int] = []

        def run(threads: int, pixels: np.ndarray, outputs: object) -> None:
            self.now += len(pixels) * seconds(threads, len(pixels))

        monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(tuning, "run", run)

    def open_session(self, threads: int) -> Any:
        self.opened.append(threads)
        return threads

    def tune(self, processors: int) -> Tuning:
        session, found = tuning.tune(self.open_session, 8, processors)
        assert session == found.threads
        return found


def test_a_thread_a_processor_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Machine(lambda threads, batch: 0.04 / threads, monkeypatch).tune(4)
    assert (found.threads, found.batch) == (4, 4)
    assert found.seconds == pytest.approx(0.01)


def test_half_as_many_where_two_processors_share_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine(lambda threads, batch: 0.02 if threads == 4 else 0.01, monkeypatch).tune(4).threads == 2


def test_a_little_faster_is_not_worth_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine(lambda threads, batch: 0.010 if threads == 4 else 0.009, monkeypatch).tune(4).threads == 4


def test_one_processor_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, batch: 0.01, monkeypatch)
    assert machine.tune(1).threads == 1
    assert machine.opened == [1]


@pytest.mark.parametrize(
    ("seconds", "best"), [((10, 8, 6), 4), ((10, 10, 10.8), 4), ((10, 8, 9), 2), ((10, 12, 13), 1)]
)
def test_of_batches_that_are_as_fast_the_largest_is_taken(
    seconds: tuple[float, ...], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Machine(lambda threads, batch: seconds[(1, 2, 4).index(batch)] / 1000, monkeypatch).tune(2)
    assert found.batch == best
    assert found.seconds == pytest.approx(seconds[(1, 2, 4).index(best)] / 1000)


def test_a_slow_model_is_not_measured_in_batches_that_would_delay_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda threads, batch: 0.3 / batch, monkeypatch)
    assert machine.tune(1).batch == 1
    assert machine.now <= (1 + RUNS) * 0.3 + BUDGET


EACH = 1 + RUNS


@pytest.mark.parametrize(
    "slow",
    [
        range(EACH),  # the runs that tell how long an image takes
        range(3 * EACH, 4 * EACH),  # the largest batch's, if one size were measured after the other
        range(3 * EACH, 3 * EACH + 1),  # one of the largest batch's
    ],
)
def test_a_batch_is_not_given_up_since_the_machine_was_slow_for_a_while(
    slow: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: both threads on one processor for several runs; batches of 1, chosen for that, then served a tenth less."""
    runs = itertools.count()
    found = Machine(lambda threads, batch: 0.088 if next(runs) in slow else 0.044, monkeypatch).tune(1)
    assert found.batch == 4


@pytest.mark.parametrize("image", [0.017, 0.055])
def test_a_large_batch_is_measured_with_either_precision(image: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of a ResNet-50 in INT8 and in FP32 on two cores."""
    assert Machine(lambda threads, batch: image, monkeypatch).tune(2).batch == 4
