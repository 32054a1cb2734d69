"""What a monitoring team sees at `/metrics`. No label's values can be chosen by a client.

With several workers each writes to files in PROMETHEUS_MULTIPROC_DIR, and whichever is asked adds them up.
"""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

if TYPE_CHECKING:  # answers imports the engine, which imports this
    from serving.inference.answers import ModelIdentity, Prediction

disable_created_metrics()  # a second series for each counter, that nobody asks for

# A 30–60 ms model would fall into one of the client library's default buckets.
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
SHARE = (*(i / 20 for i in range(1, 20)), 0.99, 1.0)
UNLIKENESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
DIFFERENCE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16)
MEGAPIXELS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 12, 20, 40)


Together = Literal["livesum", "livemax", "livemin", "mostrecent"]


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        # requests
        self.requests = counter(
            "requests", "Requests answered; reason is the problem's code", "route", "code", "reason"
        )
        self.request_seconds = histogram("request_seconds", "From the first byte in to the last out", SECONDS, "route")
        self.in_flight = gauge("in_flight", "Requests that are being answered", "livesum")
        self.stage_seconds = histogram(
            "stage_seconds", "A prediction's time in read, decode, queue, infer and respond", SECONDS, "stage"
        )
        self.megapixels = histogram("image_megapixels", "Size of the images that were decoded", MEGAPIXELS)
        # the engine
        self.batch_size = histogram("batch_size", "Images in one run of the model", BATCH)
        self.queue_depth = gauge("queue_depth", "Images admitted and not yet answered", "livesum", "lane")
        self.estimated_wait = gauge("estimated_wait_seconds", "What one more prediction would wait", "livemax")
        self.threads = gauge("threads", "Threads of the model", "livesum")
        # answers
        self.predictions = counter("predictions", "Answers by the highest class", "class", "version")
        self.refusals = counter("refusals", "Answers that referred to a haematologist, by reason", "reason")
        self.confidence = histogram("confidence", "The highest probability of each answer", SHARE)
        self.unlikeness = histogram(
            "unlikeness", "Distance from the training images; 1 is the referral threshold", UNLIKENESS
        )
        self.feedback = gauge(
            "feedback", "Confirmed labels, and whether the answer agreed", "mostrecent", "class", "agrees"
        )
        self.feedback_dropped = counter("feedback_dropped", "Answers that could not be kept for feedback")
        # the model
        self.model_info = gauge(
            "model_info", "1: the model in service; 0: one before it", "livemax",
            "name", "version", "alias", "precision", "file_sha256",
        )  # fmt: skip
        self.reloads = counter("reloads", "Attempts at another version, by result", "result")
        for result in ("switched", "refused", "failed"):
            self.reloads.labels(result)  # 0 from the start: rate() knows no increase from nothing
        self.registry_reachable = gauge("registry_reachable", "1: the registry answered when last asked", "livemin")
        self.alias_lag = gauge(
            "alias_lag_seconds", "How long the alias has named a version that is not in service", "livemax"
        )
        self.shadow = counter("shadow", "Predictions that the challenger was to answer too, by result", "result")
        self.shadow_difference = histogram(
            "shadow_difference", "Largest difference of a probability, challenger − champion", DIFFERENCE
        )
        # drift
        self.drift_window = gauge("drift_window_images", "Answers compared for drift, or gathered so far", "livemax")
        self.drift_statistic = gauge(
            "drift_statistic", "Distance of the window from the validation images", "livemax", "signal", "test"
        )
        self.drift_threshold = gauge(
            "drift_threshold", "What that distance exceeds by chance in one window of 1000, all signals together",
            "livemax", "signal", "test",
        )  # fmt: skip
        self.drift_alarm = gauge(
            "drift_alarm", "1: a statistic of this signal is beyond its threshold", "livemax", "signal"
        )
        # the process
        self.resident_bytes = gauge("resident_bytes", "Memory in use (RSS)", "mostrecent")
        self._info: tuple[str, ...] | None = None

    def describe(self, model: "ModelIdentity") -> None:
        """Says which model is in service."""
        if self._info:
            self.model_info.labels(*self._info).set(0)
        self._info = (model.name, model.version or "", model.alias or "", model.precision, model.file_sha256)
        self.model_info.labels(*self._info).set(1)

    def count(self, answer: "Prediction") -> None:
        """Counts an answer."""
        for stage, milliseconds in answer.timings_ms:
            self.stage_seconds.labels(stage).observe(milliseconds / 1000)
        self.megapixels.observe(answer.image.width * answer.image.height / 1e6)
        self.predictions.labels(answer.class_, answer.model.version or "").inc()
        for reason in answer.reasons:
            self.refusals.labels(reason.code).inc()
        self.confidence.observe(max(answer.probabilities.values()))
        self.unlikeness.observe(answer.unlikeness)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        together = self.together()  # and whoever has died is forgotten
        # Of all workers, by whichever is asked: what each said when it was asked last may be hours old, or nothing.
        self.resident_bytes.set(sum(map(_resident_bytes, _workers())))
        return generate_latest(together)

    def together(self) -> CollectorRegistry:
        """The numbers of all workers."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self.registry
        _bury()
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return together

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return _quick(Counter(f"leukdetect_{name}", text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, together: Together, *labels: str) -> Gauge:
        """`together`: how the values of several workers become one."""
        return _quick(Gauge(f"leukdetect_{name}", text, labels, registry=self.registry, multiprocess_mode=together))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return _quick(Histogram(f"leukdetect_{name}", text, labels, registry=self.registry, buckets=buckets))


Metric = TypeVar("Metric", Counter, Gauge, Histogram)


def _quick(metric: Metric) -> Metric:
    """Remembers the series of each set of labels, for which the library takes a lock and makes strings every time."""
    vars(metric)["labels"] = cache(metric.labels)
    return metric


def _workers() -> set[int]:
    """The processes whose metrics are told together, by their files; or this one alone."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return {os.getpid()}
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    return {int(file.stem.rsplit("_", 1)[1]) for file in folder.glob("gauge_live*.db")}


def _bury() -> None:
    """A worker that died counts no more among the gauges of those that live."""
    for pid in _workers():
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid)


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has just ended, or this is not Linux
        return 0
