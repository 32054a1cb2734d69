"""An image's way from bytes to scores: decode pool, then engine; a small image goes to the engine's thread at once."""

import time
from functools import partial

from leukdetect.contract import OBSERVED
from leukdetect.model_file import Model
from serving.inference.decode_pool import Decoded, Large, decode
from serving.inference.engine import Lane, Scores
from serving.inference.promise import Promise
from serving.service import Service

# Decoded in less time than it takes to wake another thread and be woken by it; a model's run is many times longer.
SMALL_BYTES, SMALL_PIXELS = 2**16, 2**17


async def examine(
    service: Service,
    model: Model,
    data: bytes,
    deadline: float,
    *,
    lane: Lane = "predict",
    outputs: tuple[str, ...] = OBSERVED,
) -> tuple[Decoded, Scores, float]:
    """Decodes and runs one image, for which a place in the lane was kept; one that is cancelled is dropped before each.

    The thread that decodes hands over to the engine, so that the event loop is woken once.

    Returns:
        The image, the scores, and the seconds that decoding took, with the wait for a thread.

    Raises:
        ProblemError: 413, 415, 422 for the image; 503 or 504 where it would have to wait too long.
    """
    promise: Promise[Scores] = Promise()
    started = time.perf_counter()
    decoded: list[tuple[Decoded, float]] = []

    def job(here: bool) -> None:
        if not promise.wanted:
            return
        try:
            most = SMALL_PIXELS if here else None
            image = decode(data, model.contract.decode.size, service.settings.max_pixels, most)
        except Large:
            send(here=False)
            return
        except Exception as error:
            promise.fail(error)
            return
        decoded.append((image, time.perf_counter() - started))
        service.engine.submit(promise, model, image.pixels, deadline, lane=lane, outputs=outputs)

    def send(here: bool) -> None:
        try:
            (service.engine.do if here else service.pool.submit)(partial(job, here))
        except Exception as error:
            promise.fail(error)

    send(here=len(data) <= SMALL_BYTES)
    scores = await promise
    image, decode_seconds = decoded[0]
    return image, scores, decode_seconds
