"""How many threads and how large a batch are best, by a short measurement on the machine that serves."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from leukdetect.contract import ANSWER
from leukdetect.runtime import run

BATCHES = (1, 2, 4)  # larger ones make the first image wait for the last, and gain nothing more on a CPU
RUNS = 3  # of each, after one to warm up
BUDGET = 1.5  # seconds for the runs of one size; a start is not to wait for the last percent
# Of the time an image takes otherwise: what a larger batch may lose here, since in the server it also saves waking
# threads; and what fewer threads must gain. Neighbours that make either look better may be gone a minute later.
WORTH_A_BATCH, WORTH_THREADS = 1.1, 0.85

Open = Callable[[int], onnxruntime.InferenceSession]  # by number of threads


@dataclass(frozen=True)
class Tuning:
    """What was found. `seconds` an image, in batches of `batch`."""

    threads: int
    batch: int
    seconds: float


def tune(open_session: Open, size: int, processors: int) -> tuple[onnxruntime.InferenceSession, Tuning]:
    """The faster of a thread a processor and a thread for every two (which may share one core), then the best batch.

    Args:
        open_session: opens the model with so many threads.
        size: S of the graph's input, uint8 [N, S, S, 3].
        processors: how many this process may use.
    """
    best_session, threads = open_session(processors), processors
    alone = _seconds_an_image(best_session, size, BATCHES[:1])[1]
    if processors > 1:
        other = open_session(processors // 2)
        halved = _seconds_an_image(other, size, BATCHES[:1])[1]
        if halved < WORTH_THREADS * alone:
            best_session, threads, alone = other, processors // 2, halved
    batches = [batch for batch in BATCHES if (1 + RUNS) * batch * alone <= BUDGET]
    seconds = {1: alone} | _seconds_an_image(best_session, size, batches)
    best = max(batch for batch, measured in seconds.items() if measured <= WORTH_A_BATCH * min(seconds.values()))
    return best_session, Tuning(threads, best, seconds[best])


def _seconds_an_image(session: onnxruntime.InferenceSession, size: int, batches: Sequence[int]) -> dict[int, float]:
    """By batch, in turns, since the machine slows down for a while at a time; the least counts: noise only adds."""
    times: dict[int, list[float]] = {batch: [] for batch in batches}
    for _ in range(1 + RUNS):
        for batch, taken in times.items():
            pixels = np.zeros((batch, size, size, 3), np.uint8)
            started = time.perf_counter()
            run(session, pixels, ANSWER)
            taken.append(time.perf_counter() - started)
    return {batch: min(taken[1:]) / batch for batch, taken in times.items()}
