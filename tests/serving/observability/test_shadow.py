"""The challenger in the champion's shadow: compared, and never in an answer."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from leukdetect.contract import ANSWER
from leukdetect.decoding import decode
from leukdetect.model_file import Model, load
from leukdetect.registry import Located
from serving.app import create_app
from serving.inference.engine import Engine, Scores
from serving.inference.prediction import prediction
from serving.metrics import Metrics
from serving.models.served import Models
from serving.models.startup import start
from serving.observability.shadow import Shadow
from serving.settings import Settings
from tests import tiny_model
from tests.registry import Registry
from tests.server import serve

RED = tiny_model.jpeg((200, 60, 60))
ALWAYS_PRO = 60.0  # a bias with which the tiny model calls everything pro; else red is benign
RESULTS = ("agreed", "disagreed", "dropped", "failed", "incompatible")


def results(exposition: str) -> dict[str, float]:
    counted = {}
    for each in RESULTS:
        if found := re.search(rf'^leukdetect_shadow_total{{result="{each}"}} (.*)$', exposition, re.MULTILINE):
            counted[each] = float(found[1])
    return counted


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def served(a_registry: Registry, folder: Path, share: float) -> Iterator[httpx.Client]:
    settings = Settings(
        tracking_uri=a_registry.uri,
        cache_dir=folder / "cache",
        feedback_db=folder / "feedback.db",
        watch_seconds=0.2,
        shadow_share=share,
    )
    with serve(create_app(settings, start(settings))) as client:
        yield client


def challenger(client: httpx.Client) -> str | None:
    health = client.get("/health").json()["challenger"]
    version: str | None = health and health["version"]
    return version


def ask_until(client: httpx.Client, result: str) -> set[tuple[str, str]]:
    """Asks until the challenger has come to a result five times; returns who answered what."""
    seen = set()
    while results(client.get("/metrics").text).get(result, 0) < 5:
        answer = client.post("/predict", content=RED).json()
        seen.add((answer["model"]["version"], answer["class"]))
    return seen


def test_a_challenger_that_agrees_is_counted_and_never_answers(a_registry: Registry, tmp_path: Path) -> None:
    champion = a_registry.add()
    with served(a_registry, tmp_path, share=1) as client:
        new = a_registry.add(alias="challenger", bias=8.5)
        until(lambda: challenger(client) == new)
        assert ask_until(client, "agreed") == {(champion, "benign")}
        text = client.get("/metrics").text
        assert results(text).keys() <= {"agreed", "dropped"}
        assert 'leukdetect_shadow_difference_bucket{le="0.01"}' in text
        assert 'leukdetect_predictions_total{class="benign",version="2"}' not in text
        assert client.get("/health").json()["note"] is None


def test_a_challenger_that_disagrees_is_counted_and_logged_by_class_alone(
    a_registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving.observability.shadow")
    champion = a_registry.add()
    with served(a_registry, tmp_path, share=1) as client:
        new = a_registry.add(alias="challenger", bias=ALWAYS_PRO)
        until(lambda: challenger(client) == new)
        assert ask_until(client, "disagreed") == {(champion, "benign")}
        text = client.get("/metrics").text
    assert results(text).keys() <= {"disagreed", "dropped"}
    assert 'leukdetect_shadow_difference_bucket{le="0.75"} 0.0' in text
    record = vars(next(record for record in caplog.records if record.name == "serving.observability.shadow"))
    own = record.keys() - vars(logging.makeLogRecord({})).keys() - {"message"}
    assert own == {"champion", "challenger", "version", "request_id"}
    assert (record["champion"], record["challenger"], record["version"]) == ("benign", "pro", new)


def test_the_challenger_follows_its_alias_and_can_become_champion(a_registry: Registry, tmp_path: Path) -> None:
    first = a_registry.add()
    with served(a_registry, tmp_path, share=1) as client:
        second, third = a_registry.add(alias="challenger"), a_registry.add(alias="nobody")
        until(lambda: challenger(client) == second)
        a_registry.move(third, "challenger")
        until(lambda: challenger(client) == third)
        folder = tmp_path / "cache/leukdetect"
        until(lambda: {each.name.split("-")[0] for each in folder.iterdir() if each.is_dir()} == {first, third})
        a_registry.move(third)
        until(lambda: client.get("/health").json()["model"]["version"] == third)
        assert client.get("/health").json()["model"]["alias"] == "champion"
        until(lambda: challenger(client) is None)  # it need not shadow itself
        a_registry.move(first, "challenger")
        until(lambda: challenger(client) == first)
        a_registry.client.delete_registered_model_alias("leukdetect", "challenger")
        until(lambda: challenger(client) is None)


def test_a_challenger_that_is_refused_is_reported_and_is_none(
    a_registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a_registry.add()
    with served(a_registry, tmp_path, share=1) as client:
        good = a_registry.add(alias="challenger")
        until(lambda: challenger(client) == good)
        bad = a_registry.add(alias="challenger", change=lambda file: file.write_bytes(b"no model"))
        until(lambda: challenger(client) is None)
        until(lambda: 'leukdetect_reloads_total{result="refused"} 1.0' in client.get("/metrics").text)
        time.sleep(0.7)  # some turns later
        assert 'leukdetect_reloads_total{result="refused"} 1.0' in client.get("/metrics").text
        assert client.get("/health").json()["status"] == "ok"  # nothing is wrong with what serves
    messages = [record.getMessage() for record in caplog.records if record.name == "serving.models.updates"]
    assert messages == [f"the challenger, version {bad}, was refused"]


def test_without_a_share_no_challenger_is_loaded(a_registry: Registry, tmp_path: Path) -> None:
    a_registry.add()
    with served(a_registry, tmp_path, share=0) as client:
        a_registry.add(alias="challenger")
        new = a_registry.add()
        until(lambda: client.get("/health").json()["model"]["version"] == new)  # a turn later
        assert challenger(client) is None
        client.post("/predict", content=RED)
        assert results(client.get("/metrics").text) == {}


# From here on without a server: what decides whether the challenger is asked.


@pytest.fixture
def champion(tmp_path: Path) -> Model:
    tiny_model.write(tmp_path / "champion.onnx")
    return load(Located(tmp_path / "champion.onnx", "1", "champion"), "fp32", 1)


def another(tmp_path: Path, **fields: Any) -> Model:
    tiny_model.write(tmp_path / "another.onnx", **fields)
    return load(Located(tmp_path / "another.onnx", "2", "challenger"), "fp32", 1)


class Shadowed:
    """An engine, a champion's answer to a red image, and the shadow that it is offered to."""

    def __init__(self, champion: Model, challenger: Model, share: float = 1.0) -> None:
        self.metrics = Metrics()
        self.engine = Engine({"predict": 4, "explain": 1, "shadow": 2}, 0.01, self.metrics, 2)
        self.shadow = Shadow(share, Models(champion, challenger=challenger), self.engine, self.metrics)
        image = decode(RED, champion.contract.decode.size, 10_000)
        self.pixels = image.pixels
        outputs = dict(zip(ANSWER, (rows[0] for rows in champion.run(self.pixels[None])), strict=True))
        self.answer = prediction("id", champion, image, Scores(outputs, 0, 0), 0, 0)

    def offer(self) -> None:
        self.shadow.offer(self.pixels, self.answer)

    async def settle(self) -> None:
        """Waits until nothing is under way."""
        await asyncio.sleep(0)
        while self.engine.depth:
            await asyncio.sleep(0.01)

    @property
    def results(self) -> dict[str, float]:
        return results(generate_latest(self.metrics.registry).decode())


def test_a_busy_server_leaves_the_challenger_out(champion: Model, tmp_path: Path) -> None:
    async def main() -> None:
        shadowed = Shadowed(champion, another(tmp_path))
        with shadowed.engine.admitted(time.perf_counter() + 60):
            shadowed.offer()
            await asyncio.sleep(0.1)
            assert shadowed.results == {"dropped": 1}
        shadowed.offer()
        await shadowed.settle()
        assert shadowed.results == {"dropped": 1, "agreed": 1}
        shadowed.engine.close()
        shadowed.offer()
        await shadowed.settle()
        assert shadowed.results == {"dropped": 2, "agreed": 1}

    asyncio.run(main())


def test_only_a_share_is_offered(champion: Model, tmp_path: Path) -> None:
    async def main() -> None:
        shadowed = Shadowed(champion, another(tmp_path), share=0.1)
        with shadowed.engine.admitted(time.perf_counter() + 60):
            for _ in range(1000):
                shadowed.offer()
        assert 30 < shadowed.results["dropped"] < 200  # of 100 expected, 7 and 10 standard deviations away
        shadowed.engine.close()

    asyncio.run(main())


def test_a_challenger_that_fails_harms_nobody_and_is_logged_once(
    champion: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        shadowed = Shadowed(champion, replace(another(tmp_path), session=None))
        for _ in range(3):
            shadowed.offer()
            await shadowed.settle()
        assert shadowed.results == {"failed": 3}
        deadline = time.perf_counter() + 60
        with shadowed.engine.admitted(deadline):
            await shadowed.engine.run(champion, shadowed.pixels, deadline)
        shadowed.engine.close()

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == ["the challenger failed"]


@pytest.mark.parametrize("what", ["another size", "other classes"])
def test_a_challenger_that_cannot_be_compared_is_not_asked(
    champion: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    fields: dict[str, Any] = {}
    if what == "another size":
        monkeypatch.setattr(tiny_model, "SIZE", 16)
    else:
        fields["classes"] = [*tiny_model.CLASSES[:3], tiny_model.CLASSES[3].model_copy(update={"key": "t_cell"})]

    async def main() -> None:
        shadowed = Shadowed(champion, another(tmp_path, **fields))
        shadowed.offer()
        await shadowed.settle()
        assert shadowed.results == {"incompatible": 1}
        shadowed.engine.close()

    asyncio.run(main())


def test_a_stop_does_not_wait_for_the_challenger(champion: Model, tmp_path: Path) -> None:
    async def main() -> None:
        shadowed = Shadowed(champion, another(tmp_path))
        shadowed.offer()
        shadowed.shadow.close()
        await shadowed.settle()
        assert shadowed.results == {}
        shadowed.engine.close()

    asyncio.run(main())
