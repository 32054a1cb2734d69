"""Decodes off the event loop, in a small pool with a bound of its own."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore

import numpy as np
from PIL import Image

from serving import images, problems, upload


@dataclass(frozen=True)
class Decoded:
    """An image as the model will see it. `brightness`, `sharpness` and `stain` are those of `pixels`."""

    pixels: np.ndarray  # uint8 [S, S, 3] RGB
    header: images.Header
    sha256: str  # of the file
    brightness: float
    sharpness: float
    stain: float


def decode(data: bytes, size: int, max_pixels: int) -> Decoded:
    """Checks the header, decodes and resizes.

    Raises:
        ProblemError: 415, 413 or 422, as `upload.check`, and 422 when the pixels are corrupt.
    """
    header = upload.check(data, max_pixels)
    try:
        pixels = images.resize(images.decode(data), size)
    except images.ImageError as error:
        raise upload.unusable(error) from error
    looks = images.brightness(pixels), images.sharpness(pixels), images.stain(pixels)
    return Decoded(pixels, header, hashlib.sha256(data).hexdigest(), *looks)


class DecodePool:
    """Runs `decode` in `threads` threads; at most `waiting` more images wait for one."""

    def __init__(self, threads: int, waiting: int) -> None:
        Image.init()  # else Pillow looks for its plugins at the first odd upload, which then waits a third of a second
        self._room = BoundedSemaphore(threads + waiting)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def run(self, data: bytes, size: int, max_pixels: int) -> Decoded:
        """Decodes `data`; one that is cancelled before its turn is never decoded.

        Raises:
            ProblemError: as `decode`, and 503 at once when the pool is full.
        """
        if not self._room.acquire(blocking=False):
            raise problems.overloaded("Too many images wait to be decoded. Try again in a second.")
        future = self._threads.submit(decode, data, size, max_pixels)
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Waits for what is being decoded."""
        self._threads.shutdown()
