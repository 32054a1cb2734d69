"""The last answers, held against the model's drift reference every few seconds."""

import logging
from collections import deque
from itertools import groupby
from typing import NamedTuple

import numpy as np

from leukdetect import drift
from leukdetect.contract import OBSERVED
from leukdetect.decoding import Decoded
from leukdetect.model_file import Model
from serving.inference.engine import Scores
from serving.metrics import Metrics

SECONDS = 5.0  # from one comparison to the next

log = logging.getLogger(__name__)


class _Answer(NamedTuple):
    model: Model
    sampled: np.ndarray  # some of the pixels, for their colour; gone after the next comparison
    image: tuple[float, float]  # brightness and sharpness
    outputs: dict[str, np.ndarray]


class Window:
    """As many answers as the reference's largest window has, each as a row of a few hundred numbers."""

    def __init__(self, metrics: Metrics) -> None:
        self.last: drift.Comparison | None = None
        self.images = 0  # that were compared last, or have been gathered so far
        self._metrics = metrics
        self._arrived: deque[_Answer] = deque(maxlen=1000)  # more than any server answers in SECONDS, nearly
        self._rows: deque[np.ndarray] = deque()
        self._model: Model | None = None
        self._drifted: set[str] = set()

    def add(self, model: Model, image: Decoded, scores: Scores) -> None:
        """Notes an answer, in a few microseconds; `compare` does the work later, in another thread."""
        measures = image.brightness, image.sharpness
        self._arrived.append(_Answer(model, drift.sample(image.pixels), measures, scores.outputs))

    def compare(self) -> None:
        """Takes in what has arrived, and compares the largest window that is full."""
        arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
        for model, answers in groupby(arrived, key=lambda answer: answer.model):
            self._take_in(model, list(answers))
        if not arrived or not self._model:
            return
        self.last = drift.compare(list(self._rows), self._model.contract.reference)
        self.images = self.last.images if self.last else len(self._rows)
        self._metrics.drift_window.set(self.images)
        self._tell()

    def _take_in(self, model: Model, answers: list[_Answer]) -> None:
        reference = model.contract.reference
        if self._model is None or model.sha256 != self._model.sha256:  # another model, another reference
            self._rows = deque(maxlen=reference.windows[-1].images)
            self.last = None
            self._tell()
        self._model = model
        saturation, hue = drift.colour(np.stack([each.sampled for each in answers]))
        brightness, sharpness = zip(*(each.image for each in answers), strict=True)
        looks = np.column_stack([brightness, saturation, sharpness, hue])
        outputs = {name: np.stack([each.outputs[name] for each in answers]) for name in OBSERVED}
        self._rows.extend(drift.encode(drift.signals(looks, **outputs), reference))

    def _tell(self) -> None:
        """Sets the gauges; where nothing was compared they are 0, and no alarm."""
        for signal, test in drift.TESTS:
            statistic, threshold = self.last.tests[signal].get(test, (0.0, 0.0)) if self.last else (0.0, 0.0)
            self._metrics.drift_statistic.labels(signal, test).set(statistic)
            self._metrics.drift_threshold.labels(signal, test).set(threshold)
        drifted = set(self.last.alarms()) if self.last else set()
        for signal in drift.MEANING:
            self._metrics.drift_alarm.labels(signal).set(signal in drifted)
        if drifted - self._drifted:
            log.warning("drift", extra={"signals": sorted(drifted)})
        elif self._drifted - drifted:
            log.info("drift has ended or changed", extra={"signals": sorted(drifted)})
        self._drifted = drifted
