"""What the metrics keep of an answer."""

from serving.inference.prediction import Prediction
from serving.metrics import Metrics


def count(metrics: Metrics, answer: Prediction) -> None:
    """Counts one answer: its stages' times, its size, class, reasons, confidence and unlikeness."""
    for stage, milliseconds in answer.timings_ms:
        metrics.stage_seconds.labels(stage).observe(milliseconds / 1000)
    metrics.megapixels.observe(answer.image.width * answer.image.height / 1e6)
    metrics.predictions.labels(answer.class_, answer.model.version or "").inc()
    for reason in answer.reasons:
        for counter in (metrics.referrals, metrics.refusals):
            counter.labels(reason.code).inc()
    metrics.confidence.observe(max(answer.probabilities.values()))
    metrics.unlikeness.observe(answer.unlikeness)
