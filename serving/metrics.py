"""What a monitoring team sees at `/metrics`. No label's values can be chosen by a client."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from serving.answers import ModelIdentity, Prediction

disable_created_metrics()  # a second series for each counter, that nobody asks for

# A 30–60 ms model would fall into one of the client library's default buckets.
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0)
SHARE = (*(i / 20 for i in range(1, 20)), 0.99, 1.0)
UNLIKENESS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16)


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)  # RSS, CPU seconds, open files
        self.requests = Counter("leukdetect_requests", "Requests answered", ["route", "code"], registry=own)
        self.request_seconds = Histogram(
            "leukdetect_request_seconds", "From the first byte in to the last byte out", ["route"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "leukdetect_stage_seconds", "A prediction's time in read, decode, queue and infer", ["stage"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self.predictions = Counter(
            "leukdetect_predictions", "Answers by the highest class", ["class", "version"], registry=own
        )
        self.refusals = Counter(
            "leukdetect_refusals", "Answers that referred to a haematologist, by reason", ["reason"], registry=own
        )
        self.confidence = Histogram(
            "leukdetect_confidence", "The highest probability of each answer", buckets=SHARE, registry=own
        )
        self.unlikeness = Histogram(
            "leukdetect_unlikeness", "Distance from the training images; 1 is the referral threshold",
            buckets=UNLIKENESS, registry=own,
        )  # fmt: skip
        self.batch_size = Histogram("leukdetect_batch_size", "Images in one run", buckets=BATCH, registry=own)
        self.queue_depth = Gauge("leukdetect_queue_depth", "Images that wait for the model", registry=own)
        self.model = Gauge(
            "leukdetect_model_info", "The model in service; always 1",
            ["name", "version", "alias", "precision", "file_sha256"], registry=own,
        )  # fmt: skip

    def describe(self, model: ModelIdentity) -> None:
        """Says which model is in service."""
        alias, version = model.alias or "", model.version or ""
        self.model.clear()
        self.model.labels(model.name, version, alias, model.precision, model.file_sha256).set(1)

    def count(self, answer: Prediction) -> None:
        """Counts an answer."""
        for stage, milliseconds in answer.timings_ms:
            self.stage_seconds.labels(stage).observe(milliseconds / 1000)
        self.predictions.labels(answer.class_, answer.model.version or "").inc()
        for reason in answer.reasons:
            self.refusals.labels(reason.code).inc()
        self.confidence.observe(max(answer.probabilities.values()))
        self.unlikeness.observe(answer.unlikeness)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
