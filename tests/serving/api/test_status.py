"""The figures behind the status page."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from leukdetect.model_file import load
from leukdetect.registry import Located
from serving.api import status
from serving.app import create_app
from serving.metrics import Metrics
from serving.models.served import Models
from serving.observability import history
from serving.observability.history import Sample
from serving.settings import Settings
from tests import tiny_model
from tests.server import serve


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr(history, "STEP", 0.1)
    tiny_model.write(tmp_path / "m.onnx")
    settings = Settings(feedback_db=tmp_path / "feedback.db")
    with serve(create_app(settings, Models(load(Located(tmp_path / "m.onnx", "7", "champion"), "fp32", 2)))) as client:
        yield client


def kept(metrics: Metrics) -> history.Samples:
    return history.History(metrics).points()[-1][1]


def test_percentiles_are_read_off_the_buckets_as_prometheus_does() -> None:
    metrics = Metrics()
    metrics.stage_seconds.labels("infer").observe(3)  # before; it must not count
    before = kept(metrics)
    seconds = np.random.default_rng(0).lognormal(np.log(0.07), 0.4, 4000)
    for each in seconds:
        metrics.stage_seconds.labels("infer").observe(each)
    metrics.stage_seconds.labels("decode").observe(0.001)
    found = status.latency(history.difference(before, kept(metrics)), "stage_seconds", stage="infer")
    assert found.count == 4000
    assert found.p50_ms == pytest.approx(1000 * np.quantile(seconds, 0.5), rel=0.05)
    assert found.p95_ms == pytest.approx(1000 * np.quantile(seconds, 0.95), rel=0.1)


def test_what_no_bucket_bounds_is_the_highest_bound_and_nothing_is_nothing() -> None:
    metrics = Metrics()
    empty = kept(metrics)
    assert status.latency(empty, "stage_seconds", stage="infer").p95_ms is None
    metrics.stage_seconds.labels("infer").observe(30)
    change = history.difference(empty, kept(metrics))
    assert status.latency(change, "stage_seconds", stage="infer").p50_ms == 2000


def test_only_what_is_shown_is_remembered_and_not_for_ever() -> None:
    metrics = Metrics()
    metrics.predictions.labels("pro", "7").inc()
    samples = kept(metrics)
    assert samples[Sample("predictions_total", (("class", "pro"), ("version", "7")))] == 1
    assert not any(sample.name.startswith(("confidence", "resident")) for sample in samples)


def settled(client: httpx.Client, count: int) -> dict[str, Any]:
    """The status once `count` predictions are in it: a request is counted just after its answer is out."""
    for _ in range(100):
        found: dict[str, Any] = client.get("/status.json").json()
        if found["routes"].get("/predict", {}).get("count") == count:
            return found
        time.sleep(0.05)
    raise AssertionError(found["routes"])


def test_the_status_says_how_the_requests_ended(client: httpx.Client) -> None:
    for _ in range(3):
        client.post("/predict", content=tiny_model.jpeg((60, 60, 200)))
    client.post("/predict", content=tiny_model.jpeg((5, 5, 5)))
    client.post("/predict", content=b"no image")
    client.get("/health")  # not what clients come for
    found = settled(client, 5)
    assert list(found["routes"]) == ["/predict"]
    assert {(each["code"], each["count"]) for each in found["outcomes"]} == {(200, 4), (415, 1)}
    assert found["classes"]["pre"] == 3
    assert sum(found["classes"].values()) == 4
    assert found["referrals"]["too_dark"] == found["refusals"]["too_dark"] == 1
    assert {stage: each["count"] for stage, each in found["stages"].items()} == {
        "read": 4, "decode": 4, "queue": 4, "infer": 4, "respond": 4,
    }  # fmt: skip
    assert found["routes"]["/predict"]["p50_ms"] <= found["routes"]["/predict"]["p95_ms"]
    assert found["health"]["model"]["version"] == "7"
    assert 60 * 5 / found["per_minute"] == pytest.approx(found["seconds"], abs=0.06)  # which is rounded
    assert found["drift"] == {"images": found["drift"]["images"], "needed": 50, "signals": []}


def test_the_trend_remembers_the_steps_before_the_page_was_opened(client: httpx.Client) -> None:
    client.post("/predict", content=tiny_model.jpeg((60, 60, 200)))
    settled(client, 1)
    time.sleep(0.3)
    trend = settled(client, 1)["trend"]
    assert sum(point["predict"]["count"] for point in trend) == 1
    assert [point["seconds_ago"] for point in trend] == sorted((each["seconds_ago"] for each in trend), reverse=True)


def test_the_page_is_served_under_the_same_policy_as_the_other(client: httpx.Client) -> None:
    page, front = client.get("/status"), client.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Content-Security-Policy"] == front.headers["Content-Security-Policy"]
