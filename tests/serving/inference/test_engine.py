"""The engine: who is answered when, and what one client's fault does to others."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from serving.inference.engine import BATCH, PATIENCE, SHARE, Engine, Lane
from serving.metrics import Metrics
from serving.problems import ProblemError

POISON = 13


class Model:
    """Answers each image with its own first pixel; the test says when. A batch with a poisoned image fails whole."""

    seconds_an_image = 0.001

    def __init__(self, *, side_by_side: bool = False) -> None:
        self.side_by_side = side_by_side
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batches: list[list[int]] = []
        self.beside: list[list[int]] = []  # the batches that had one processor
        self.most = self._now = 0  # runs at the same time
        self._counting = threading.Lock()

    def run(self, pixels: np.ndarray, outputs: Sequence[str], *, beside: bool = False) -> list[np.ndarray]:
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)
        self.started.set()
        assert self.gate.wait(10)
        values = pixels[:, 0, 0, 0]
        with self._counting:
            self._now -= 1
            self.batches.append(values.tolist())
            if beside:
                self.beside.append(values.tolist())
        if POISON in values:
            raise RuntimeError("poisoned")
        return [values.astype(np.float32) for _ in outputs]


@contextmanager
def engine(model: Model, size: int = 100, pace: float = 0.001, threads: int = 2) -> Iterator[Engine]:
    running = Engine({"predict": size, "explain": size, "shadow": size}, pace, Metrics(), threads)
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


async def ask(running: Engine, model: Model, value: int, seconds: float = 60, lane: Lane = "predict") -> int:
    """A client's way through the engine; returns what the model said."""
    deadline = time.perf_counter() + seconds
    with running.admitted(deadline, lane):
        scores = await running.run(model, image(value), deadline, lane=lane)
    return int(scores.outputs["unlikeness"])


def asking(running: Engine, model: Model, *values: int, lane: Lane = "predict") -> list[asyncio.Task[int]]:
    return [asyncio.create_task(ask(running, model, value, lane=lane)) for value in values]


async def hold(running: Engine, model: Model) -> asyncio.Task[int]:
    """Occupies the model with image 0 until the gate opens, so that what follows has to wait."""
    model.gate.clear()
    first = asyncio.create_task(ask(running, model, 0))
    await asyncio.to_thread(model.started.wait, 10)
    return first


async def settle() -> None:
    """Lets every task reach its wait."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("threads", "side_by_side"), [(1, False), (2, False), (2, True), (5, True)])
def test_everyone_gets_their_own_answer(threads: int, side_by_side: bool) -> None:
    async def main() -> None:
        model = Model(side_by_side=side_by_side)
        with engine(model, threads=threads) as running:
            values = [v for v in range(30) if v != POISON]
            assert await asyncio.gather(*asking(running, model, *values)) == values
            assert running.depth == 0

    within_seconds(main())


def test_what_waits_is_taken_together_up_to_the_best_batch_and_nothing_waits_for_more() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            others = asking(running, model, *range(1, BATCH + 3))
            await settle()
            model.gate.set()
            await asyncio.gather(first, *others)
            assert [len(batch) for batch in model.batches] == [1, BATCH, 2]

    within_seconds(main())


class Meeting(Model):
    """Its runs on one processor answer when there are so many at the same time."""

    def __init__(self, parties: int) -> None:
        super().__init__(side_by_side=True)
        self.barrier = threading.Barrier(parties)

    def run(self, pixels: np.ndarray, outputs: Sequence[str], *, beside: bool = False) -> list[np.ndarray]:
        if beside:
            self.barrier.wait(10)
        return super().run(pixels, outputs, beside=beside)


@pytest.mark.parametrize("threads", [2, 3])
def test_a_lone_image_has_all_processors_and_several_run_beside_one_another(threads: int) -> None:
    async def main() -> None:
        model = Meeting(threads)
        with engine(model, threads=threads) as running:
            first = await hold(running, model)
            others = asking(running, model, *range(1, SHARE * threads + 1))
            await settle()
            await asyncio.sleep(0.05)
            assert model.most == 1  # nothing beside what has all processors
            model.gate.set()
            await asyncio.gather(first, *others)
            assert model.batches[0] == [0]
            assert sorted(model.beside) == [[v, v + 1] for v in range(1, SHARE * threads, 2)]

    within_seconds(main())


def test_two_that_wait_are_shared_out() -> None:
    async def main() -> None:
        model = Meeting(2)
        with engine(model) as running:
            first = await hold(running, model)
            others = asking(running, model, 1, 2)
            await settle()
            model.gate.set()
            await asyncio.gather(first, *others)
            assert sorted(model.beside) == [[1], [2]]

    within_seconds(main())


def test_a_model_that_needs_all_processors_waits_for_them() -> None:
    async def main() -> None:
        shared, whole = Meeting(3), Model()  # the test itself is the third
        with engine(shared) as running:
            first = await hold(running, shared)
            two = asking(running, shared, 1, 2, 3, 4)
            after = asking(running, whole, 5, 6)
            await settle()
            shared.gate.set()
            await first
            await asyncio.sleep(0.05)
            assert shared.barrier.n_waiting == 2
            assert not whole.started.is_set()
            await asyncio.to_thread(shared.barrier.wait, 10)
            await asyncio.gather(*two, *after)
            assert (whole.batches, whole.beside) == ([[5, 6]], [])

    within_seconds(main())


def test_no_processor_that_is_left_over_goes_to_a_model_that_needs_all() -> None:
    async def main() -> None:
        shared, whole = Meeting(2), Model()
        with engine(shared, threads=3) as running:
            first = await hold(running, shared)
            two = asking(running, shared, 1, 2)
            after = asking(running, whole, 5, 6)
            await settle()
            shared.gate.set()
            await first
            await asyncio.sleep(0.05)
            assert not whole.started.is_set()
            await asyncio.to_thread(shared.barrier.wait, 10)
            await asyncio.gather(*two, *after)

    within_seconds(main())


def test_images_for_two_models_never_share_a_run() -> None:
    async def main() -> None:
        old, new = Model(), Model()
        with engine(old) as running:
            first = await hold(running, old)
            tasks = [*asking(running, old, 1), *asking(running, new, 2, 3), *asking(running, old, 4)]
            await settle()
            old.gate.set()
            await asyncio.gather(first, *tasks)
            assert (old.batches, new.batches) == ([[0], [1], [4]], [[2, 3]])

    within_seconds(main())


def test_a_full_lane_refuses_at_once_says_when_to_come_back_and_stays_alive() -> None:
    async def main() -> None:
        model = Model()
        with engine(model, size=3, pace=2.5) as running:
            waiting = [await hold(running, model), *asking(running, model, 1, 2)]
            await settle()
            with pytest.raises(ProblemError) as refused:
                await ask(running, model, 3)
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "10"})
            assert running.alive
            model.gate.set()
            assert await asyncio.gather(*waiting) == [0, 1, 2]

    within_seconds(main())


def test_a_predicted_wait_beyond_the_deadline_is_refused_before_anything_is_done() -> None:
    async def main() -> None:
        model = Model()
        with engine(model, pace=1.0) as running:
            waiting = [await hold(running, model), *asking(running, model, 1)]
            await settle()
            with pytest.raises(ProblemError, match=r"about 3\.0 s"):
                await ask(running, model, 2, seconds=2)
            patient = asyncio.create_task(ask(running, model, 3, seconds=10))
            await settle()
            model.gate.set()
            assert await asyncio.gather(*waiting, patient) == [0, 1, 3]
            assert [2] not in model.batches

    within_seconds(main())


def test_a_pace_that_was_bad_once_does_not_shut_the_door_for_ever() -> None:
    async def main() -> None:
        model = Model()
        with engine(model, pace=1000.0) as running:
            for _ in range(200):  # one at a time: each is let in, and each teaches a better pace
                await ask(running, model, 1, seconds=2)
            assert running.estimated_wait < 2
            assert await asyncio.gather(*asking(running, model, 2, 3)) == [2, 3]

    within_seconds(main())


def test_what_expired_in_the_queue_is_never_computed() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            late = asyncio.create_task(ask(running, model, 1, seconds=0.05))
            patient = asyncio.create_task(ask(running, model, 2))
            await asyncio.sleep(0.1)
            model.gate.set()
            with pytest.raises(ProblemError) as expired:
                await late
            assert expired.value.status == 504
            assert (await first, await patient) == (0, 2)
            assert model.batches == [[0], [2]]

    within_seconds(main())


def test_predictions_go_before_explanations_and_both_before_a_shadow() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            tasks = asking(running, model, 30, lane="shadow")
            tasks += asking(running, model, 20, lane="explain")
            tasks += asking(running, model, 10)
            await settle()
            model.gate.set()
            await asyncio.gather(first, *tasks)
            assert model.batches == [[0], [10], [20], [30]]

    within_seconds(main())


def test_an_explanation_has_its_turn_even_where_predictions_never_stop() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            explained = asking(running, model, 99, lane="explain")
            predicted = asking(running, model, *[v % POISON for v in range((PATIENCE + 2) * BATCH)])
            await settle()
            model.gate.set()
            await asyncio.gather(first, *explained, *predicted)
            assert model.batches.index([99]) == PATIENCE + 1  # after the first, and its patience

    within_seconds(main())


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_poisoned_image_fails_alone(side_by_side: bool) -> None:
    async def main() -> None:
        model = Model(side_by_side=side_by_side)
        with engine(model) as running:
            first = await hold(running, model)
            one, poisoned, three = asking(running, model, 1, POISON, 3)
            await settle()
            model.gate.set()
            with pytest.raises(RuntimeError, match="poisoned"):
                await poisoned
            assert (await first, await one, await three) == (0, 1, 3)
            assert await ask(running, model, 4) == 4

    within_seconds(main())


def test_a_cancelled_image_is_never_computed_and_strands_no_batch_mate() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            one, two, three = asking(running, model, 1, 2, 3)
            await settle()
            two.cancel()
            await settle()
            assert running.depth == 3
            model.gate.set()
            assert (await first, await one, await three) == (0, 1, 3)
            assert model.batches == [[0], [1, 3]]

    within_seconds(main())


def test_cancelling_what_is_being_computed_harms_nobody() -> None:
    async def main() -> None:
        model = Model()
        with engine(model) as running:
            first = await hold(running, model)
            first.cancel()
            model.gate.set()
            assert await ask(running, model, 5) == 5

    within_seconds(main())


def test_an_answer_that_is_not_finite_is_an_error_and_not_an_answer() -> None:
    class Broken(Model):
        def run(self, pixels: np.ndarray, outputs: Sequence[str], *, beside: bool = False) -> list[np.ndarray]:
            return [np.full(len(pixels), np.nan, np.float32) for _ in outputs]

    async def main() -> None:
        model = Broken()
        with engine(model) as running, pytest.raises(FloatingPointError, match="not finite"):
            await ask(running, model, 1)

    within_seconds(main())


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_thread_that_dies_leaves_nobody_waiting_and_is_known(side_by_side: bool) -> None:
    class Deadly(Model):
        def run(self, pixels: np.ndarray, outputs: Sequence[str], *, beside: bool = False) -> list[np.ndarray]:
            super().run(pixels, outputs, beside=beside)
            raise SystemExit  # no Exception: nothing that a model's fault could be

    async def main() -> None:
        model = Deadly(side_by_side=side_by_side)
        with engine(model) as running:
            first = await hold(running, model)
            others = asking(running, model, 1, 2)
            await settle()
            model.gate.set()
            answers = await asyncio.gather(first, *others, return_exceptions=True)
            assert all(isinstance(answer, BaseException) for answer in answers)
            while running.alive:
                await asyncio.sleep(0.001)
            with pytest.raises(ProblemError):
                await ask(running, model, 3)

    within_seconds(main())


@pytest.mark.parametrize("side_by_side", [False, True])
def test_closing_answers_what_waits_and_refuses_what_comes(side_by_side: bool) -> None:
    async def main() -> None:
        model = Model(side_by_side=side_by_side)
        with engine(model) as running:
            waiting = [await hold(running, model), *asking(running, model, 1, 2)]
            await settle()
            closing = asyncio.create_task(asyncio.to_thread(running.close))
            while running.alive:
                await asyncio.sleep(0.001)
            with pytest.raises(ProblemError, match="stopping"):
                await ask(running, model, 9)
            model.gate.set()
            await closing
            assert await asyncio.gather(*waiting) == [0, 1, 2]

    within_seconds(main())
