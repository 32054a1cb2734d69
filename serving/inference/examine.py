"""An image's way from bytes to scores: a small decode pool with a bound of its own, then the engine."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image
from prometheus_client import Counter

from leukdetect import images
from leukdetect.apart import MEMORY, Ask, Helper, Want
from leukdetect.contract import OBSERVED, Decode
from leukdetect.cost import memory
from leukdetect.decoding import Decoded, decode, seen
from leukdetect.formats.errors import NoMemoryError
from leukdetect.model_file import Model
from serving import problems
from serving.inference.engine import Engine, Lane, Scores
from serving.request.budget import Budget

WAITING_APART = 4  # images that may cost much and wait for the one process that decodes them
_RESULTS = {"overloaded": "refused", "costly-image": "over_budget"}

T = TypeVar("T")


class DecodePool:
    """A few threads that decode, and a helper process for what may cost much; at most `waiting` more images wait.

    An image whose cost a look at the file bounds goes to a thread, where it cannot be stopped. What may cost more is
    decoded `apart`, one at a time: ended when its client leaves, its deadline passes or its budget is spent. What it
    may take of memory is taken of the server's budget meanwhile.
    """

    def __init__(self, threads: int, waiting: int, max_pixels: int, decoded_apart: Counter, budget: Budget) -> None:
        """`decoded_apart`: counts what was decoded apart, by result."""
        Image.init()  # else Pillow looks for its plugins at the first odd upload, which then waits a third of a second
        self._max_pixels, self._budget = max_pixels, budget
        self._memory_apart = min(MEMORY, budget.most * 4 // 5)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._room = threading.Semaphore(threads + waiting)
        self._helper, self._decoded_apart = Helper(), decoded_apart
        self._apart = ThreadPoolExecutor(1, thread_name_prefix="apart")
        self._room_apart = threading.Semaphore(1 + min(waiting, WAITING_APART))

    async def decode(self, data: bytes, how: Decode, deadline: float, lane: Lane = "predict") -> Decoded:
        """Decodes a file as a model wants it; one that is cancelled before its turn is not decoded.

        Raises:
            ProblemError: 413, 415, 422 for the image; 503 at once where too many wait already, 504 past the deadline.
        """
        if (needed := memory(data)) is not None:
            decoded = partial(decode, data, how.size, self._max_pixels, how.scaled)
            return await self._in_a_thread(decoded, needed, self._room)
        ask = self._ask(data, "seen", how.size, how.scaled)

        def look() -> Decoded:
            header, pixels = self._answer(ask)
            return seen(Image.fromarray(pixels), header, how.size, data)

        # Explanations are few by their lane's own size, and would never find a place that predictions wait for.
        return await self._in_a_process(ask, look, deadline, self._room_apart if lane == "predict" else None)

    async def picture(self, data: bytes, side: int, deadline: float) -> Image.Image:
        """A file's upright RGB picture for a person, at most `side` pixels a side; the file was decoded once already.

        Raises ProblemError: as `decode`, except that the place in the lane of explanations is the only one needed.
        """

        def small() -> Image.Image:
            picture = images.decode(data)
            picture.thumbnail((side, side))
            return picture

        if (needed := memory(data)) is not None:
            return await self._in_a_thread(small, needed, None)
        ask = self._ask(data, "picture", side)
        return await self._in_a_process(ask, lambda: Image.fromarray(self._answer(ask)[1]), deadline, None)

    def close(self) -> None:
        """Waits for the images that are being decoded."""
        self._threads.shutdown()
        self._apart.shutdown()
        self._helper.close()

    def _ask(self, data: bytes, want: Want, size: int, scaled: bool = True) -> Ask:
        return Ask(data, want, size, self._max_pixels, scaled, memory=self._memory_apart)

    def _answer(self, ask: Ask) -> tuple[images.Header, np.ndarray]:
        with self._budget.taken(self._memory_apart, apart=True):
            return ask.answer(self._helper)

    async def _in_a_thread(self, work: Callable[[], T], needed: int, room: threading.Semaphore | None) -> T:
        def within() -> T:
            with self._budget.taken(needed):
                return work()

        with _problems():
            return await asyncio.wrap_future(_submitted(self._threads, within, room))

    async def _in_a_process(
        self, ask: Ask, work: Callable[[], T], deadline: float, room: threading.Semaphore | None
    ) -> T:
        result = "abandoned"
        try:
            with _problems():
                working = _submitted(self._apart, work, room)
                async with asyncio.timeout(deadline - time.perf_counter()):
                    answer = await asyncio.wrap_future(working)
            result = "decoded"
            return answer
        except problems.ProblemError as error:
            result = _RESULTS.get(error.code, "unusable")
            raise
        except TimeoutError as error:
            result = "expired"
            raise problems.expired() from error
        finally:
            ask.hang_up()
            self._decoded_apart.labels(result).inc()


def _submitted(threads: ThreadPoolExecutor, work: Callable[[], T], room: threading.Semaphore | None) -> Future[T]:
    if room is None:
        return threads.submit(work)
    if not room.acquire(blocking=False):
        raise problems.overloaded("Too many images wait to be decoded. Try again in a second.")
    working = threads.submit(work)
    working.add_done_callback(lambda _: room.release())
    return working


@contextmanager
def _problems() -> Iterator[None]:
    """What decoding raises, as problems."""
    try:
        yield
    except (MemoryError, NoMemoryError) as error:
        raise problems.overloaded("There is no memory for the image now. Try again in a second.") from error
    except images.ImageError as error:
        raise problems.of_image(error) from error


async def examine(
    pool: DecodePool,
    engine: Engine,
    model: Model,
    data: bytes,
    deadline: float,
    *,
    lane: Lane = "predict",
    outputs: tuple[str, ...] = OBSERVED,
) -> tuple[Decoded, Scores, float]:
    """Decodes and runs one image, for which a place in the lane was kept.

    Returns:
        The image, the scores, and the seconds that decoding took, with the wait for a thread.

    Raises:
        ProblemError: 413, 415, 422 for the image; 503 or 504 where it would have to wait too long.
    """
    started = time.perf_counter()
    image = await pool.decode(data, model.contract.decode, deadline, lane)
    decode_seconds = time.perf_counter() - started
    return image, await engine.run(model, image.pixels, deadline, lane=lane, outputs=outputs), decode_seconds
