"""An image's way from bytes to scores: decode pool, then engine."""

import time

from leukdetect.contract import OBSERVED
from leukdetect.decoding import Decoded
from leukdetect.model_file import Model
from serving.inference.decode_pool import DecodePool
from serving.inference.engine import Engine, Lane, Scores


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
