"""Decodes images off the event loop, in a small pool with a bound of its own."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from leukdetect.decoding import Decoded, decode
from leukdetect.images import ImageError
from serving import problems


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
