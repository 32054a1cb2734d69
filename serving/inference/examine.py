"""An image's way from bytes to scores: a small decode pool with a bound of its own, then the engine."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from leukdetect.contract import OBSERVED
from leukdetect.decoding import Decoded, decode
from leukdetect.images import ImageError
from leukdetect.model_file import Model
from serving import problems
from serving.inference.engine import Engine, Lane, Scores


class DecodePool:
    """A few threads that decode; at most `waiting` more images wait for one."""

    def __init__(self, threads: int, waiting: int, max_pixels: int) -> None:
        Image.init()  # else Pillow looks for its plugins at the first odd upload, which then waits a third of a second
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._room = threading.Semaphore(threads + waiting)

    async def decode(self, data: bytes, size: int) -> Decoded:
        """Decodes a file and resizes it to uint8 [size, size, 3]; one that is cancelled before its turn is not decoded.

        Raises:
            ProblemError: 413, 415, 422 for the image; 503 at once where too many wait already.
        """
        if not self._room.acquire(blocking=False):
            raise problems.overloaded("Too many images wait to be decoded. Try again in a second.")
        decoding = self._threads.submit(decode, data, size, self._max_pixels)
        decoding.add_done_callback(lambda _: self._room.release())
        try:
            return await asyncio.wrap_future(decoding)
        except ImageError as error:
            raise problems.of_image(error) from error

    def close(self) -> None:
        """Waits for the images that are being decoded."""
        self._threads.shutdown()


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
    image = await pool.decode(data, model.contract.decode.size)
    decode_seconds = time.perf_counter() - started
    return image, await engine.run(model, image.pixels, deadline, lane=lane, outputs=outputs), decode_seconds
