"""The metrics of the last minutes, so that whoever opens /status sees how they came to be what they are."""

import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from serving.metrics import Metrics

STEP = 10.0  # seconds from one point to the next
STEPS = 30  # so five minutes
_FAMILIES = ("requests", "request_seconds", "stage_seconds", "in_flight", "predictions", "referrals")


class Sample(NamedTuple):
    """One number of the metrics: its name and its labels."""

    name: str
    labels: tuple[tuple[str, str], ...]


Samples = Mapping[Sample, float]


class History:
    """The metrics as they were, every STEP seconds."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._kept: deque[tuple[float, Samples]] = deque([(time.monotonic(), self._now())], maxlen=STEPS)

    def remember(self) -> None:
        """Keeps the metrics of this moment."""
        self._kept.append((time.monotonic(), self._now()))

    def points(self) -> list[tuple[float, Samples]]:
        """When (on the clock of time.monotonic) the metrics were what; the last is now."""
        return [*self._kept, (time.monotonic(), self._now())]

    def _now(self) -> Samples:
        return {
            Sample(sample.name.removeprefix("leukdetect_"), tuple(sorted(sample.labels.items()))): sample.value
            for family in self._metrics.registry.collect()
            if family.name.removeprefix("leukdetect_").startswith(_FAMILIES)
            for sample in family.samples
        }


def difference(before: Samples, after: Samples) -> Samples:
    """What counters and buckets have grown by; what has not grown is left out."""
    return {key: value - before.get(key, 0) for key, value in after.items() if value > before.get(key, 0)}
