import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from serving.engine import MAX_BATCH, Engine, Scores
from serving.metrics import Metrics
from serving.problems import ProblemError

POISON = 13


class Model:
    """Answers each image with its own first pixel; the test says when. A batch with a poisoned image fails whole."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batches: list[list[int]] = []

    def infer(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.started.set()
        assert self.gate.wait(10)
        values = pixels[:, 0, 0, 0]
        self.batches.append(values.tolist())
        if POISON in values:
            raise RuntimeError("poisoned")
        return np.stack([values, values], 1).astype(np.float32), values.astype(np.float32)


@contextmanager
def engine(model: Model, queue_size: int = 32) -> Iterator[Engine]:
    running = Engine(model.infer, queue_size, Metrics().batch_size)
    try:
        yield running
    finally:
        model.gate.set()
        running.close()


def within_seconds(test: Coroutine[Any, Any, None]) -> None:
    """Runs the test; what hangs fails soon."""
    asyncio.run(asyncio.wait_for(test, 20))


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


async def hold(running: Engine, model: Model) -> asyncio.Task[Scores]:
    """Occupies the model with image 0 until the gate opens, so that what follows has to wait."""
    model.gate.clear()
    first = asyncio.create_task(running.run(image(0)))
    await asyncio.to_thread(model.started.wait, 10)
    return first


async def wait_for_depth(running: Engine, depth: int) -> None:
    async with asyncio.timeout(10):
        while running.depth != depth:
            await asyncio.sleep(0.001)


def test_everyone_gets_their_own_answer() -> None:
    async def main() -> None:
        with engine(Model()) as running:
            values = [v for v in range(30) if v != POISON]
            scores = await asyncio.gather(*(running.run(image(v)) for v in values))
            assert [s.unlikeness for s in scores] == values
            assert [s.probabilities.tolist() for s in scores] == [[v, v] for v in values]

    within_seconds(main())


def test_what_waits_is_taken_together_and_nothing_waits_for_more() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            others = [asyncio.create_task(running.run(image(v))) for v in range(1, MAX_BATCH + 3)]
            await wait_for_depth(running, len(others))
            model.gate.set()
            await asyncio.gather(first, *others)
            assert [len(batch) for batch in model.batches] == [1, MAX_BATCH, 2]

    within_seconds(main())


def test_a_full_queue_refuses_at_once_and_stays_ready() -> None:
    async def main() -> None:
        model = Model()
        with engine(model, queue_size=2) as running:
            waiting = [await hold(running, model)]
            waiting += [asyncio.create_task(running.run(image(v))) for v in (1, 2)]
            await wait_for_depth(running, 2)
            with pytest.raises(ProblemError) as refused:
                await running.run(image(3))
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
            assert running.ready
            model.gate.set()
            await asyncio.gather(*waiting)

    within_seconds(main())


def test_a_poisoned_image_fails_alone() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            others = [asyncio.create_task(running.run(image(v))) for v in (1, POISON, 3)]
            await wait_for_depth(running, 3)
            model.gate.set()
            one, poisoned, three = others
            with pytest.raises(RuntimeError, match="poisoned"):
                await poisoned
            assert ((await one).unlikeness, (await three).unlikeness) == (1, 3)
            await first
            assert (await running.run(image(4))).unlikeness == 4

    within_seconds(main())


def test_a_cancelled_image_is_never_computed_and_strands_no_batch_mate() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            one, two, three = (asyncio.create_task(running.run(image(v))) for v in (1, 2, 3))
            await wait_for_depth(running, 3)
            two.cancel()
            await asyncio.sleep(0)
            model.gate.set()
            assert (await first, (await one).unlikeness, (await three).unlikeness)[1:] == (1, 3)
            assert model.batches == [[0], [1, 3]]

    within_seconds(main())


def test_cancelling_what_is_being_computed_harms_nobody() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            first.cancel()
            model.gate.set()
            assert (await running.run(image(5))).unlikeness == 5

    within_seconds(main())


def test_an_answer_that_is_not_finite_is_an_error_and_not_an_answer() -> None:
    async def main() -> None:
        def infer(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.full((len(pixels), 2), np.nan, np.float32), np.zeros(len(pixels), np.float32)

        running = Engine(infer, 4, Metrics().batch_size)
        with pytest.raises(FloatingPointError, match="not finite"):
            await running.run(image(1))
        running.close()

    within_seconds(main())


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    async def main() -> None:
        model = Model()
        running = Engine(model.infer, 4, Metrics().batch_size)
        waiting = [await hold(running, model)]
        waiting += [asyncio.create_task(running.run(image(v))) for v in (1, 2)]
        await wait_for_depth(running, 2)
        closing = asyncio.create_task(asyncio.to_thread(running.close))
        while running.ready:
            await asyncio.sleep(0.001)
        with pytest.raises(ProblemError, match="stopping"):
            await running.run(image(9))
        model.gate.set()
        await closing
        assert [scores.unlikeness for scores in await asyncio.gather(*waiting)] == [0, 1, 2]

    within_seconds(main())
