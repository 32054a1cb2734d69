"""The challenger in the champion's shadow: it answers a share of the predictions too, unseen, and is compared."""

import asyncio
import logging
import random
import time

import numpy as np

from leukdetect.model_file import Model
from serving.inference.engine import Engine
from serving.inference.prediction import Prediction
from serving.metrics import Metrics
from serving.models.served import Models
from serving.problems import ProblemError

SECONDS = 2.0  # deadline of a challenger's answer

log = logging.getLogger(__name__)


class Shadow:
    """Used on the event loop alone."""

    def __init__(self, share: float, models: Models, engine: Engine, metrics: Metrics) -> None:
        self._share = share
        self._models = models
        self._engine = engine
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: str | None = None  # the file whose failure is in the log already

    def offer(self, pixels: np.ndarray, answer: Prediction) -> None:
        """Lets the challenger see what the champion has answered, by chance and only where nobody waits.

        Args:
            pixels: as the champion saw them, uint8 [S, S, 3].
            answer: the champion's; the client gets it, whatever becomes of this.
        """
        challenger = self._models.challenger
        if challenger is None or random.random() >= self._share:  # noqa: S311  (a sample, not a secret)
            return
        # Every model in service decodes as this server does, so only the size differs, and whether a JPEG was scaled on
        # the way, which is a level or two.
        side, keys = challenger.contract.decode.size, [each.key for each in challenger.contract.classes]
        if len(pixels) != side or keys != list(answer.probabilities):
            self._count("incompatible")
        elif self._engine.depth > 0:
            self._count("dropped")
        else:
            task = asyncio.create_task(self._ask(challenger, pixels, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Cancels the questions that are under way."""
        for task in self._tasks:
            task.cancel()

    async def _ask(self, challenger: Model, pixels: np.ndarray, answer: Prediction) -> None:
        deadline = time.perf_counter() + SECONDS
        try:
            with self._engine.admitted(deadline, "shadow"):
                scores = await self._engine.run(challenger, pixels, deadline, lane="shadow")
        except ProblemError:  # busy after all
            self._count("dropped")
            return
        except Exception as error:
            self._count("failed")
            if challenger.sha256 != self._failing:
                self._failing = challenger.sha256
                version = challenger.located.version
                log.error("the challenger failed", extra={"version": version, "error": str(error)})
            return
        probabilities = scores.outputs["probabilities"]
        difference = np.max(np.abs(probabilities - np.array(list(answer.probabilities.values()))))
        self._metrics.shadow_difference.observe(float(difference))
        top = challenger.contract.classes[int(np.argmax(probabilities))].key
        if top == answer.key:
            self._count("agreed")
            return
        self._count("disagreed")
        classes = {"champion": answer.key, "challenger": top, "version": challenger.located.version}
        log.info("the challenger disagrees", extra=classes | {"request_id": answer.request_id})

    def _count(self, result: str) -> None:
        self._metrics.shadow.labels(result).inc()
