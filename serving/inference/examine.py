"""An image's way from bytes to scores: decode pool, then engine."""

import time

from leukdetect.contract import OBSERVED
from leukdetect.decoding import Decoded, decode
from leukdetect.images import ImageError
from leukdetect.model_file import Model
from serving import problems
from serving.inference.engine import Lane, Scores
from serving.inference.promise import Promise
from serving.service import Service


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

    def job() -> None:
        if not promise.wanted:
            return
        try:
            image = decode(data, model.contract.decode.size, service.settings.max_pixels)
        except ImageError as error:
            promise.fail(problems.of_image(error))
            return
        except Exception as error:
            promise.fail(error)
            return
        decoded.append((image, time.perf_counter() - started))
        service.engine.submit(promise, model, image.pixels, deadline, lane=lane, outputs=outputs)

    service.pool.submit(job)
    scores = await promise
    image, decode_seconds = decoded[0]
    return image, scores, decode_seconds
