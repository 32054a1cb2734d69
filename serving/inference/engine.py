"""One thread runs the models: bounded lanes before it, and whatever waits in one is answered in one run."""

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, Protocol

import numpy as np

from leukdetect.contract import ANSWER
from serving import problems
from serving.inference.promise import Promise
from serving.metrics import Metrics

# In the order in which they are served: explanations wait for predictions, a shadow for both.
Lane = Literal["predict", "explain", "shadow"]
LANES: tuple[Lane, ...] = ("predict", "explain", "shadow")
PATIENCE = 8  # runs for predictions while an explanation waits; then it has its turn, so that it does not starve
BATCH = 4  # images in one run at most; more make the first wait for the last, and gain nothing on a CPU
MARGIN = 1.5  # of the predicted wait, by which it must lie within the deadline: neighbours come, and the pace drops
MEMORY = 0.9  # of the pace so far, when a run adds to it: the last ten runs or so count

log = logging.getLogger(__name__)


class Runs(Protocol):
    """What the engine needs of a model."""

    @property
    def seconds_an_image(self) -> float: ...

    def run(self, pixels: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Scores:
    """The model's answer to one image: a row of each output that was asked for."""

    outputs: dict[str, np.ndarray]
    queue_seconds: float
    infer_seconds: float  # of the whole run that this image was in


@dataclass(frozen=True, eq=False)
class _Waiting:
    model: Runs
    pixels: np.ndarray
    outputs: tuple[str, ...]
    deadline: float
    lane: Lane
    promise: Promise[Scores]
    since: float = field(default_factory=time.perf_counter)


class Engine:
    """Answers images one run at a time, in the order of `LANES`.

    Two callers on one session are slower than one after the other, so a single thread runs every model. It takes
    what is waiting for the same model, up to `BATCH`, and never waits for more.
    """

    def __init__(self, sizes: Mapping[Lane, int], pace: float, metrics: Metrics) -> None:
        """`sizes`: how many images may be admitted to a lane at once; `pace`: seconds an image, to begin with."""
        self._sizes = sizes
        self._pace = pace
        self._metrics = metrics
        self._lanes: dict[Lane, deque[_Waiting]] = {lane: deque() for lane in LANES}
        self._admitted = dict.fromkeys(LANES, 0)
        self._passed_over = 0
        self._arrived: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()  # to be put in lanes
        self._closing = False
        self._ended = False
        self._last_done = 0.0
        self._thread = threading.Thread(target=self._guarded, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what is submitted now will be answered. A full lane does not make it false."""
        return not (self._closing or self._ended)

    @property
    def depth(self) -> int:
        """How many images were admitted and have no answer yet."""
        return sum(self._admitted.values())

    @property
    def estimated_wait(self) -> float:
        """Seconds until one more prediction would be answered, at the pace of the last runs."""
        return (self._admitted["predict"] + 1) * self._pace

    @contextmanager
    def admitted(self, deadline: float, lane: Lane = "predict") -> Iterator[None]:
        """Keeps a place in a lane, from before the image is decoded until it is answered.

        Args:
            deadline: on the clock of time.perf_counter.
            lane: which.

        Raises:
            ProblemError: 503 at once, where the lane is full or the predicted wait is beyond the deadline.
        """
        if not self.alive:
            raise _stopping()
        wait = self.estimated_wait
        # Where nobody waits the next image is let in whatever the pace was: it is how a better pace is learnt.
        late = self.depth > 0 and time.perf_counter() + MARGIN * wait > deadline
        if late or self._admitted[lane] >= self._sizes[lane]:
            detail = f"An answer would take about {wait:.1f} s. Try again, or allow more time with X-Deadline-Ms."
            raise problems.overloaded(detail, max(1, math.ceil(wait)))
        self._admit(lane, 1)
        try:
            yield
        finally:
            self._admit(lane, -1)

    async def run(
        self,
        model: Runs,
        pixels: np.ndarray,
        deadline: float,
        *,
        lane: Lane = "predict",
        outputs: tuple[str, ...] = ANSWER,
    ) -> Scores:
        """Answers one image, uint8 [S, S, 3], for which a place was kept; one that is cancelled is never computed.

        Raises:
            ProblemError: 504 where the deadline passes first, and then nothing is computed; 503 when stopping.
        """
        promise: Promise[Scores] = Promise()
        self.submit(promise, model, pixels, deadline, lane=lane, outputs=outputs)
        return await promise

    def submit(
        self,
        promise: Promise[Scores],
        model: Runs,
        pixels: np.ndarray,
        deadline: float,
        *,
        lane: Lane = "predict",
        outputs: tuple[str, ...] = ANSWER,
    ) -> None:
        """As `run`, from any thread; the promise brings what `run` would return or raise."""
        if not self.alive:
            promise.fail(_stopping())
            return
        self._arrived.put(_Waiting(model, pixels, outputs, deadline, lane, promise))
        if self._ended:  # in the meantime
            self._refuse_arrived()

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
        self._closing = True
        self._arrived.put(None)
        self._thread.join()

    def _admit(self, lane: Lane, change: int) -> None:
        self._admitted[lane] += change  # on the event loop alone
        self._metrics.queue_depth.labels(lane).set(self._admitted[lane])
        self._metrics.estimated_wait.set(self.estimated_wait)

    def _guarded(self) -> None:
        """Should the thread itself fail, nobody is left waiting, and `alive` tells."""
        batch: list[_Waiting] = []
        try:
            while batch := self._take():
                self._answer(batch)
                batch = []  # while this waits, it must not keep an old model alive
        except BaseException:
            log.exception("the inference thread failed")
            for item in (*batch, *chain.from_iterable(self._lanes.values())):
                item.promise.fail(problems.overloaded("The model's thread failed.", 5))
        finally:
            self._ended = True
            self._refuse_arrived()

    def _refuse_arrived(self) -> None:
        with suppress(queue.Empty):
            while True:
                item = self._arrived.get_nowait()
                if isinstance(item, _Waiting):
                    item.promise.fail(problems.overloaded("The model's thread has ended. Try again.", 5))

    def _take(self) -> list[_Waiting]:
        """The next batch, of one model and one set of outputs; empty at the end."""
        while True:
            while not self._arrived.empty() or not any(self._lanes.values()):
                if self._closing and self._arrived.empty():
                    return []
                item = self._arrived.get()
                if isinstance(item, _Waiting):
                    self._lanes[item.lane].append(item)
            lane = self._next_lane()
            waiting = self._lanes[lane]
            first = waiting[0]
            batch: list[_Waiting] = []
            while waiting and len(batch) < BATCH:
                item = waiting[0]
                if (item.model, item.outputs) != (first.model, first.outputs):
                    break
                waiting.popleft()
                if self._wanted(item):
                    batch.append(item)
            if batch:
                self._passed_over = self._passed_over + 1 if lane == "predict" and self._lanes["explain"] else 0
                return batch

    def _next_lane(self) -> Lane:
        if self._lanes["explain"] and self._passed_over >= PATIENCE:
            return "explain"
        return next(lane for lane in LANES if self._lanes[lane])

    def _wanted(self, item: _Waiting) -> bool:
        """Whether somebody still waits for it, and will when it is done."""
        if not item.promise.wanted:
            return False
        if time.perf_counter() + item.model.seconds_an_image > item.deadline:
            item.promise.fail(problems.expired())
            return False
        return True

    def _answer(self, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        outputs = batch[0].outputs
        try:
            rows = batch[0].model.run(np.stack([item.pixels for item in batch]), outputs)
            if not all(np.isfinite(each).all() for each in rows):
                raise FloatingPointError("the model's answer is not finite")
        except Exception as error:
            if len(batch) == 1:
                batch[0].promise.fail(error)
            else:
                for item in batch:  # each alone, so that the one at fault harms no other
                    self._answer([item])
            return
        done = time.perf_counter()
        if batch[0].lane == "predict":
            # While it is busy, what counts is from one answer to the next: decoding takes its share of the processors.
            pace = (done - max(self._last_done, batch[0].since)) / len(batch)
            self._pace = MEMORY * self._pace + (1 - MEMORY) * pace
        self._last_done = done
        self._metrics.batch_size.observe(len(batch))
        for index, item in enumerate(batch):
            answer = {name: each[index] for name, each in zip(outputs, rows, strict=True)}
            item.promise.keep(Scores(answer, started - item.since, done - started))


def _stopping() -> problems.ProblemError:
    return problems.overloaded("The server is stopping. Try again.", 1)
