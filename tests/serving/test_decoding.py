"""The decode pool: its bound, and what becomes of what waits."""

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving import examining
from serving.decoding import DecodePool
from serving.engine import Scores
from serving.problems import ProblemError
from serving.promise import Promise
from tests import tiny_model

SECONDS = 10


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def pool(gate: threading.Event) -> Iterator[DecodePool]:
    pool = DecodePool(threads=1, waiting=2)
    yield pool
    gate.set()
    pool.close()


def test_one_more_than_may_wait_is_refused_and_the_rest_done_in_order(pool: DecodePool, gate: threading.Event) -> None:
    done: list[int] = []
    last = threading.Event()
    pool.submit(lambda: done.append(int(gate.wait(SECONDS)) - 1))
    pool.submit(lambda: done.append(1))
    pool.submit(lambda: done.append(2))
    with pytest.raises(ProblemError) as refused:
        pool.submit(lambda: done.append(3))
    assert refused.value.status == 503
    gate.set()
    while len(done) < 2:  # then there is room again
        time.sleep(0.001)
    pool.submit(last.set)
    assert last.wait(SECONDS)
    assert done == [0, 1, 2]


class Engine:
    """Answers at once, from the thread that submits."""

    submitted = 0

    def submit(self, promise: Promise[Scores], *_: Any, **__: Any) -> None:
        self.submitted += 1
        promise.keep(Scores({"unlikeness": np.zeros(())}, 0, 0))


def service(pool: DecodePool) -> Any:
    return SimpleNamespace(pool=pool, engine=Engine(), settings=SimpleNamespace(max_pixels=10_000))


MODEL: Any = SimpleNamespace(contract=SimpleNamespace(decode=SimpleNamespace(size=32)))


def test_an_image_is_decoded_and_then_scored(pool: DecodePool) -> None:
    asked = examining.examine(service(pool), MODEL, tiny_model.jpeg((1, 2, 3)), deadline=0)
    image, scores, decode_seconds = asyncio.run(asked)
    assert image.pixels.shape == (32, 32, 3)
    assert scores.outputs["unlikeness"] == 0
    assert decode_seconds > 0


def test_what_cannot_be_decoded_never_reaches_the_engine(pool: DecodePool) -> None:
    running = service(pool)
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examining.examine(running, MODEL, b"no image", deadline=0))
    assert (refused.value.status, running.engine.submitted) == (415, 0)


def test_an_image_that_is_cancelled_before_its_turn_is_never_decoded(pool: DecodePool, gate: threading.Event) -> None:
    running = service(pool)

    def hold() -> None:
        gate.wait(SECONDS)

    async def main() -> None:
        pool.submit(hold)
        task = asyncio.create_task(examining.examine(running, MODEL, tiny_model.jpeg((1, 2, 3)), deadline=0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        after: Promise[None] = Promise()
        pool.submit(lambda: after.keep(None))
        await after

    asyncio.run(main())
    assert running.engine.submitted == 0


def test_of_two_results_the_first_counts() -> None:
    faults = []

    async def main() -> int:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        promise: Promise[int] = Promise()
        promise.keep(1)
        promise.fail(RuntimeError("too late"))
        result = await promise
        await asyncio.sleep(0)
        return result

    assert asyncio.run(main()) == 1
    assert faults == []
