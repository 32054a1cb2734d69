"""GET /status.json: latency, requests, answers and drift of the last minutes, for those without Grafana.

All but drift is read from the metrics that Prometheus would scrape.
"""

import asyncio
from bisect import bisect_left
from collections import Counter
from itertools import pairwise

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from leukdetect import drift
from serving.api import health
from serving.api.schemas import Health
from serving.metrics import SECONDS
from serving.observability import history
from serving.observability.history import Sample, Samples, difference
from serving.service import Service, of

WORK = ("/predict", "/explain", "/feedback", "/v2/models")  # what clients come for; probes and pages are not counted
STAGES = ("read", "decode", "queue", "infer", "respond")

router = APIRouter(tags=["state"])


class Latency(BaseModel):
    """Of one kind. Read off the metrics' buckets, so about right; never above the highest bucket's bound."""

    count: int
    p50_ms: float | None = Field(description="half were faster; null: there were none")
    p95_ms: float | None


class Point(BaseModel):
    """A few seconds of the trend."""

    seconds_ago: float
    per_minute: float = Field(description="requests for predictions and the like")
    predict: Latency = Field(description="POST /predict, from the first byte in to the last byte out")


class Outcome(BaseModel):
    """Requests that ended alike."""

    code: int
    reason: str = Field(description="the problem's code; empty for a success")
    count: int


class Test(BaseModel):
    """One way to compare a signal's window with the validation images."""

    test: str = Field(description="psi, excess, ks or mmd")
    statistic: float
    threshold: float


class Signal(BaseModel):
    """Whether one thing about the images or answers has changed since the model was validated."""

    signal: str
    alarm: bool = Field(description="a statistic is beyond its threshold")
    meaning: str
    tests: list[Test]
    window: list[float] | None = Field(
        description="shares of the window in the cells of the reference's quantiles, or in classes; the embedding has "
        "none"
    )


class Drift(BaseModel):
    """The last answers against the validation images."""

    images: int = Field(description="that were compared, or have been gathered so far")
    needed: int = Field(description="below that many nothing is said")
    signals: list[Signal] = Field(description="empty while nothing is said")


class Status(BaseModel):
    """How the server has been doing."""

    health: Health
    seconds: float = Field(description="what the figures cover, up to now; five minutes at most")
    in_flight: int
    per_minute: float = Field(description="requests for predictions and the like")
    lowest_ms: float = Field(description="a latency below this means just that: no bucket is finer")
    highest_ms: float = Field(description="a latency of this means: this or more")
    routes: dict[str, Latency]
    stages: dict[str, Latency] = Field(description="a prediction's time")
    outcomes: list[Outcome] = Field(description="the most frequent first")
    classes: dict[str, int] = Field(description="answers by the highest class")
    referrals: dict[str, int] = Field(description="answers that referred, by reason")
    refusals: dict[str, int] = Field(description="the former name of referrals, until version 0.2", deprecated=True)
    trend: list[Point]
    drift: Drift


@router.get("/status.json")
async def status(request: Request) -> Status:
    """What /status shows: the last five minutes' latency, requests and answers, and drift."""
    summary = await health.health(request)
    return await asyncio.to_thread(_status, of(request), summary)  # adding up takes milliseconds


def _status(service: Service, health: Health) -> Status:
    points = service.history.points()
    (then, before), (now, after) = points[0], points[-1]
    change = difference(before, after)
    seconds = max(now - then, 1e-3)
    outcomes: Counter[tuple[str, str]] = Counter()
    for (route, code, reason), count in _grown(change, "requests_total", "route", "code", "reason").items():
        if route.startswith(WORK):
            outcomes[code, reason] += count
    routes = sorted(route for (route,) in _grown(change, "request_seconds_count", "route") if route.startswith(WORK))
    return Status(
        health=health,
        seconds=round(seconds, 1),
        in_flight=int(after.get(Sample("in_flight", ()), 0)),
        per_minute=_per_minute(change, seconds),
        lowest_ms=1000 * SECONDS[0],
        highest_ms=1000 * SECONDS[-1],
        routes={route: latency(change, "request_seconds", route=route) for route in routes},
        stages={stage: latency(change, "stage_seconds", stage=stage) for stage in STAGES},
        outcomes=[Outcome(code=int(code), reason=reason, count=n) for (code, reason), n in outcomes.most_common()],
        classes={key: count for (key,), count in _grown(change, "predictions_total", "class").items()},
        referrals=(referrals := {why: n for (why,), n in _grown(change, "referrals_total", "reason").items()}),
        refusals=referrals,
        trend=[_point(now, *pair) for pair in pairwise(points) if pair[1][0] - pair[0][0] > history.STEP / 2],
        drift=_drift(service),
    )


def _point(now: float, earlier: tuple[float, Samples], later: tuple[float, Samples]) -> Point:
    change, seconds = difference(earlier[1], later[1]), later[0] - earlier[0]
    return Point(
        seconds_ago=round(now - later[0], 1),
        per_minute=_per_minute(change, seconds),
        predict=latency(change, "request_seconds", route="/predict"),
    )


def latency(change: Samples, name: str, **labels: str) -> Latency:
    """Median and 95th percentile from a histogram's buckets, as Prometheus' histogram_quantile has them."""
    counts = _grown(change, f"{name}_bucket", "le", *labels)
    buckets = {float(bound): n for (bound, *mine), n in counts.items() if mine == [*labels.values()]}
    bounds = (*SECONDS, float("inf"))
    # A bucket that has not grown is left out of the change, so its count is 0.
    cumulative = [buckets.get(bound, 0) for bound in bounds]
    return Latency(
        count=cumulative[-1], p50_ms=_quantile(bounds, cumulative, 0.5), p95_ms=_quantile(bounds, cumulative, 0.95)
    )


def _quantile(bounds: tuple[float, ...], cumulative: list[int], share: float) -> float | None:
    rank = share * cumulative[-1]
    if not rank:
        return None
    at = bisect_left(cumulative, rank)
    low, below = (bounds[at - 1], cumulative[at - 1]) if at else (0.0, 0)
    within = 0.0 if bounds[at] == float("inf") else (bounds[at] - low) * (rank - below) / (cumulative[at] - below)
    return round(1000 * (low + within), 1)


def _grown(change: Samples, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """How much a metric has grown, by the values of some of its labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for sample, count in change.items():
        if sample.name == name:
            mine = dict(sample.labels)
            found[tuple(mine[label] for label in labels)] += int(count)
    return found


def _per_minute(change: Samples, seconds: float) -> float:
    work = sum(n for (route,), n in _grown(change, "requests_total", "route").items() if route.startswith(WORK))
    return round(60 * work / seconds, 1)


def _drift(service: Service) -> Drift:
    last, needed = service.window.last, service.models.champion.contract.reference.windows[0].images
    if last is None:
        return Drift(images=service.window.images, needed=needed, signals=[])
    signals = [
        Signal(
            signal=signal,
            alarm=last.alarm(signal),
            meaning=meaning,
            tests=[
                Test(test=test, statistic=statistic, threshold=threshold)
                for test, (statistic, threshold) in last.tests[signal].items()
            ],
            window=last.shares[signal].tolist() if signal in last.shares else None,
        )
        for signal, meaning in drift.MEANING.items()
    ]
    return Drift(images=last.images, needed=needed, signals=signals)
