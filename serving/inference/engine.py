"""A few threads run the models: bounded lanes before them, and whatever waits in one is answered in one run or more."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np

from leukdetect.contract import ANSWER
from serving import problems
from serving.metrics import Metrics

# In the order in which they are served: explanations wait for predictions, a shadow for both.
Lane = Literal["predict", "explain", "shadow"]
LANES: tuple[Lane, ...] = get_args(Lane)
PATIENCE = 8  # after so many runs for predictions an explanation that waits has its turn
BATCH = 4  # images in one run at most; more make the first wait for the last, and gain nothing on a CPU
SHARE = 2  # the same of a run on one processor, which takes longer
MARGIN = 1.5  # refuse if now + MARGIN × predicted wait is past the deadline
MEMORY = 0.9  # weight of the old value in the moving average of seconds per image

log = logging.getLogger(__name__)


class Runs(Protocol):
    """What the engine needs of a model."""

    @property
    def seconds_an_image(self) -> float: ...

    @property
    def side_by_side(self) -> bool: ...

    def run(self, pixels: np.ndarray, outputs: Sequence[str], *, beside: bool) -> list[np.ndarray]: ...


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
    future: Future[Scores] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Engine:
    """Answers images in the order of `LANES`: one run on all processors, or several beside one another on one each.

    A lone image has all processors: it is answered soonest so. Of several, each thread takes its share: runs that have
    nothing to do with one another answer more images a second than one whose every operator is divided, if the model
    was loaded for it. No run waits for more images than there are.
    """

    name = "inference"

    def __init__(self, sizes: Mapping[Lane, int], pace: float, metrics: Metrics, threads: int) -> None:
        """`sizes`: how many images may be admitted to a lane at once; `pace`: seconds per image, to begin with;
        `threads`: how many runs there may be beside one another, the processors of this process.
        """
        self._sizes = sizes
        self._pace = pace
        self._metrics = metrics
        self._admitted = dict.fromkeys(LANES, 0)  # changed on the event loop alone
        for lane in LANES:
            metrics.queue_depth.labels(lane).set_function(partial(self._admitted.__getitem__, lane))
        metrics.estimated_wait.set_function(lambda: self.estimated_wait)
        self._lanes: dict[Lane, deque[_Waiting]] = {lane: deque() for lane in LANES}
        self._changed = threading.Condition()  # around the lanes and what follows
        self._closing = False
        self._running = 0  # runs at this moment
        self._alone = False  # whether the run at this moment has all processors
        self._passed_over = 0  # runs for predictions since an explanation began to wait
        self._last_done = 0.0
        self._threads = [threading.Thread(target=self._work, name=self.name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether an image submitted now will be answered. A full lane does not make it false."""
        return not self._closing

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
        """Keeps a place in a lane, from before the image is decoded until it is answered; `deadline` as perf_counter's.

        Raises ProblemError: 503 at once, where the lane is full or the predicted wait is beyond the deadline.
        """
        if not self.alive:
            raise _stopping()
        wait = self.estimated_wait
        # With nobody waiting the next image is always admitted: only a run can correct a pace that was too slow.
        late = self.depth > 0 and time.perf_counter() + MARGIN * wait > deadline
        if late or self._admitted[lane] >= self._sizes[lane]:
            detail = f"An answer would take about {wait:.1f} s. Try again, or allow more time with X-Deadline-Ms."
            raise problems.overloaded(detail, max(1, math.ceil(wait)))
        self._admitted[lane] += 1
        try:
            yield
        finally:
            self._admitted[lane] -= 1

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

        Raises ProblemError: 504 where the deadline passes first, and then nothing is computed; 503 when stopping.
        """
        item = _Waiting(model, pixels, outputs, deadline, lane)
        with self._changed:
            if not self.alive:
                raise _stopping()
            self._lanes[lane].append(item)
            self._changed.notify()
        return await asyncio.wrap_future(item.future)

    def close(self) -> None:
        """Answers the images that wait, then ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """Runs batches until the end. Should a thread itself fail, nobody is left waiting, and `alive` tells."""
        batch: list[_Waiting] = []
        try:
            while batch := self._take():
                try:
                    self._answer(batch, beside=not self._alone)
                finally:
                    with self._changed:
                        self._running, self._alone = self._running - 1, False
                        if self._closing or any(self._lanes.values()):
                            self._changed.notify_all()
                batch = []  # a batch kept during the wait would keep an old model in memory
        except BaseException:
            log.exception("the inference thread failed")
            with self._changed:
                self._closing = True
                waiting = [item for lane in self._lanes.values() for item in lane]
                for lane in self._lanes.values():
                    lane.clear()
                self._changed.notify_all()
            for item in (*batch, *waiting):
                if not item.future.done() and (item.future.running() or item.future.set_running_or_notify_cancel()):
                    item.future.set_exception(problems.overloaded("The model's thread failed.", 5))

    def _take(self) -> list[_Waiting]:
        """The next batch, of one model and one set of outputs; empty at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._may_run() or (self._closing and not any(self._lanes.values())))
                if not any(self._lanes.values()):
                    return []
                lane = self._next_lane()
                waiting = self._lanes[lane]
                first = waiting[0]
                beside = first.model.side_by_side
                each = math.ceil(len(waiting) / (len(self._threads) - self._running))
                most = min(SHARE, each) if beside else BATCH
                batch: list[_Waiting] = []
                while waiting and len(batch) < most:
                    if (waiting[0].model, waiting[0].outputs) != (first.model, first.outputs):
                        break
                    item = waiting.popleft()
                    if _wanted(item):
                        batch.append(item)
                if batch:
                    self._passed_over = self._passed_over + 1 if lane == "predict" and self._lanes["explain"] else 0
                    lone = not self._running and len(batch) == 1 and not any(self._lanes.values())
                    self._alone = lone or not beside
                    self._running += 1
                    return batch

    def _may_run(self) -> bool:
        """Whether what is next in turn may begin now."""
        if self._alone or not any(self._lanes.values()):
            return False
        return not self._running or self._lanes[self._next_lane()][0].model.side_by_side

    def _next_lane(self) -> Lane:
        if self._lanes["explain"] and self._passed_over >= PATIENCE:
            return "explain"
        return next(lane for lane in LANES if self._lanes[lane])

    def _answer(self, batch: list[_Waiting], *, beside: bool) -> None:
        started = time.perf_counter()
        outputs = batch[0].outputs
        try:
            rows = batch[0].model.run(np.stack([item.pixels for item in batch]), outputs, beside=beside)
            if not all(np.isfinite(each).all() for each in rows):
                raise FloatingPointError("the model's answer is not finite")
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for item in batch:  # each alone, so that the one at fault harms no other
                    self._answer([item], beside=beside)
            return
        done = time.perf_counter()
        with self._changed:
            if batch[0].lane == "predict":
                # Under load, seconds per image count from one answer to the next: decoding uses the processors too.
                pace = (done - max(self._last_done, batch[0].since)) / len(batch)
                self._pace = MEMORY * self._pace + (1 - MEMORY) * pace
            self._last_done = done
        self._metrics.batch_size.observe(len(batch))
        for index, item in enumerate(batch):
            answer = {name: each[index] for name, each in zip(outputs, rows, strict=True)}
            item.future.set_result(Scores(answer, started - item.since, done - started))


def _wanted(item: _Waiting) -> bool:
    """Whether somebody still waits for it, and will when it is done; from now on it cannot be cancelled."""
    if not item.future.set_running_or_notify_cancel():
        return False
    if time.perf_counter() + item.model.seconds_an_image > item.deadline:
        item.future.set_exception(problems.expired())
        return False
    return True


def _stopping() -> problems.ProblemError:
    return problems.overloaded("The server is stopping. Try again.", 1)
