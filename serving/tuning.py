"""How many threads and how large a batch are best, by a short measurement on the machine that serves."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime

from serving.contract import ANSWER
from serving.session import run

BATCHES = (1, 2, 4)  # larger ones make the first image wait for the last, and gain nothing more on a CPU
BUDGET = 0.6  # seconds; a start is not to wait for the last percent
# Of the time an image takes otherwise: what a larger batch may lose here, since in the server it also saves waking
# threads; and what fewer threads must gain, since the neighbours that make them look better may be gone a minute later.
WORTH_A_BATCH, WORTH_THREADS = 1.03, 0.85

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
    seconds = {1: _seconds_an_image(best_session, size, 1)}
    if processors > 1:
        other = open_session(processors // 2)
        if (halved := _seconds_an_image(other, size, 1)) < WORTH_THREADS * seconds[1]:
            best_session, threads, seconds = other, processors // 2, {1: halved}
    deadline = time.perf_counter() + BUDGET
    for batch in BATCHES[1:]:
        if time.perf_counter() + 3 * batch * seconds[1] > deadline:
            break
        seconds[batch] = _seconds_an_image(best_session, size, batch)
    best = max(batch for batch, measured in seconds.items() if measured <= WORTH_A_BATCH * min(seconds.values()))
    return best_session, Tuning(threads, best, seconds[best])


def _seconds_an_image(session: onnxruntime.InferenceSession, size: int, batch: int) -> float:
    """The best of two runs, after one to warm up: noise only ever adds."""
    pixels = np.zeros((batch, size, size, 3), np.uint8)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        run(session, pixels, ANSWER)
        times.append(time.perf_counter() - started)
    return min(times[1:]) / batch
