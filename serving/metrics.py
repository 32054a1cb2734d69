"""What a monitoring team sees at `/metrics`. No label's values can be chosen by a client."""

import os
import platform
from functools import partial
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from leukdetect import __version__
from leukdetect.model_file import Model

disable_created_metrics()  # a second series for each counter, that nobody asks for

# The client library's default buckets have one from 25 to 50 ms, where most answers would lie.
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
SHARE = (*(i / 20 for i in range(1, 20)), 0.99, 1.0)
UNLIKENESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
DIFFERENCE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16)
MEGAPIXELS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 12, 20, 40)


class Metrics:
    """A server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="leukdetect", registry=self.registry)
        gauge = partial(Gauge, namespace="leukdetect", registry=self.registry)
        histogram = partial(Histogram, namespace="leukdetect", registry=self.registry)
        # requests
        self.requests = counter(
            "requests", "Requests answered; reason is the problem's code", ["route", "code", "reason"]
        )
        self.request_seconds = histogram(
            "request_seconds", "From the first byte in to the last out", ["route"], buckets=SECONDS
        )
        self.in_flight = gauge("in_flight", "Requests that are being answered")
        self.request_bytes = gauge("request_bytes", "Memory that requests hold, and the most that they may", ["what"])
        self.stage_seconds = histogram(
            "stage_seconds", "A prediction's time in read, decode, queue, infer and respond", ["stage"], buckets=SECONDS
        )
        self.megapixels = histogram("image_megapixels", "Size of the images that were decoded", buckets=MEGAPIXELS)
        self.decoded_apart = counter(
            "decoded_apart", "Images that may cost much and were sent to a process of their own, by result", ["result"]
        )
        # the engine
        self.batch_size = histogram("batch_size", "Images in one run of the model", buckets=BATCH)
        self.queue_depth = gauge("queue_depth", "Images admitted and not yet answered", ["lane"])
        self.estimated_wait = gauge("estimated_wait_seconds", "What one more prediction would wait")
        self.threads = gauge("threads", "Threads of the model")
        # answers
        self.predictions = counter("predictions", "Answers by the highest class", ["class", "version"])
        self.referrals = counter("referrals", "Answers that referred to a haematologist, by reason", ["reason"])
        self.refusals = counter("refusals", "The former name of referrals, until version 0.2", ["reason"])
        self.confidence = histogram("confidence", "The highest probability of each answer", buckets=SHARE)
        self.unlikeness = histogram(
            "unlikeness", "Distance from the training images; 1 is the referral threshold", buckets=UNLIKENESS
        )
        self.feedback = gauge("feedback", "Confirmed labels, and whether the answer agreed", ["class", "agrees"])
        self.feedback_labels = counter("feedback_labels", "Labels given: the first, changed, or repeated", ["kind"])
        for kind in ("first", "changed", "repeated"):
            self.feedback_labels.labels(kind)
        self.feedback_dropped = counter("feedback_dropped", "Answers that could not be kept for feedback")
        # the model
        self.model_info = gauge(
            "model_info",
            "1: the model in service; 0: one before it",
            ["name", "version", "alias", "precision", "file_sha256"],
        )
        self.reloads = counter("reloads", "Attempts at another version, by result", ["result"])
        for result in ("switched", "refused", "failed"):
            self.reloads.labels(result)  # 0 from the start: rate() knows no increase from nothing
        self.registry_reachable = gauge("registry_reachable", "1: the registry answered when last asked")
        self.alias_lag = gauge("alias_lag_seconds", "How long the alias has named a version that is not in service")
        self.shadow = counter("shadow", "Predictions that the challenger was to answer too, by result", ["result"])
        self.shadow_difference = histogram(
            "shadow_difference", "Largest difference of a probability, challenger − champion", buckets=DIFFERENCE
        )
        # drift
        self.drift_window = gauge("drift_window_images", "Answers compared for drift, or gathered so far")
        self.drift_statistic = gauge(
            "drift_statistic", "Distance of the window from the validation images", ["signal", "test"]
        )
        self.drift_threshold = gauge(
            "drift_threshold",
            "What that distance exceeds by chance in one window of 1000, all signals together",
            ["signal", "test"],
        )
        self.drift_alarm = gauge("drift_alarm", "1: a statistic of this signal is beyond its threshold", ["signal"])
        # the process
        self.thread_alive = gauge("thread_alive", "1: this background thread runs; 0: it has ended", ["thread"])
        self.thread_busy = gauge("thread_busy_seconds", "How long its present turn has lasted; 0: none", ["thread"])
        ProcessCollector(registry=self.registry)  # process_*: processor time, memory, open files, start
        resident = partial(self.registry.get_sample_value, "process_resident_memory_bytes")
        gauge("resident_bytes", "The former name of process_resident_memory_bytes, until version 0.2").set_function(
            lambda: resident() or 0
        )
        build = {"version": __version__, "commit": os.environ.get("SOURCE_COMMIT", "")}
        build |= {"python": platform.python_version(), "onnxruntime": version("onnxruntime")}
        gauge("build_info", "1: the server's own version", list(build)).labels(**build).set(1)
        self._info: tuple[str, ...] | None = None

    def describe(self, model: Model) -> None:
        """Says which model is in service."""
        if self._info:
            self.model_info.labels(*self._info).set(0)
        contract, located = model.contract, model.located
        self._info = (contract.name, located.version or "", located.alias or "", contract.precision, model.sha256)
        self.model_info.labels(*self._info).set(1)
