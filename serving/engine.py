"""One thread owns the session: a bounded queue before it, and whatever waits is answered in one run."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import Histogram

from serving import problems

# Larger batches make the first image wait for the last and are no faster on a CPU.
MAX_BATCH = 8

Infer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Scores:
    """The model's answer to one image."""

    probabilities: np.ndarray  # float32 [C]
    unlikeness: float
    queue_seconds: float
    infer_seconds: float  # of the whole run that this image was in


@dataclass(frozen=True)
class _Waiting:
    pixels: np.ndarray
    future: Future[Scores] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Engine:
    """Answers images one run at a time.

    Two callers on one session are slower than one after the other, so a single thread calls `infer`: uint8
    [N, S, S, 3] to probabilities [N, C] and unlikeness [N]. It takes what is waiting and never waits for more.
    """

    def __init__(self, infer: Infer, queue_size: int, batch_sizes: Histogram) -> None:
        self._infer = infer
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(queue_size)
        self._batch_sizes = batch_sizes
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether an image that is submitted now will be answered. A full queue does not make it false."""
        return self._thread.is_alive() and not self._closing

    @property
    def depth(self) -> int:
        """How many images wait."""
        return self._queue.qsize()

    async def run(self, pixels: np.ndarray) -> Scores:
        """Answers one image, uint8 [S, S, 3]; one that is cancelled while it waits is never computed.

        Raises:
            ProblemError: 503 at once when the queue is full or the server is stopping.
        """
        if not self.ready:
            raise problems.overloaded("The server is stopping. Try again.")
        item = _Waiting(pixels)
        try:
            self._queue.put_nowait(item)
        except queue.Full as error:
            raise problems.overloaded("Too many images wait for the model. Try again in a second.") from error
        return await asyncio.wrap_future(item.future)

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            batch = [item]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                following = self._queue.get()  # this thread is the only reader, so it cannot block
                if following is None:
                    self._queue.put(None)  # for the outer loop, after this batch
                    break
                batch.append(following)
            self._answer([each for each in batch if each.future.set_running_or_notify_cancel()])

    def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        try:
            probabilities, unlikeness = self._infer(np.stack([item.pixels for item in batch]))
            if not (np.isfinite(probabilities).all() and np.isfinite(unlikeness).all()):
                raise FloatingPointError("the model's answer is not finite")
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for item in batch:  # each alone, so that the one at fault harms no other
                    self._answer([item])
            return
        seconds = time.perf_counter() - started
        self._batch_sizes.observe(len(batch))
        for item, row, distance in zip(batch, probabilities, unlikeness, strict=True):
            item.future.set_result(Scores(row, float(distance), started - item.since, seconds))
