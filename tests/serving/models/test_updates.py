"""Another version while the server runs, with a real registry and real requests: switched, refused, moved back."""

import gc
import hashlib
import json
import logging
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mlflow.webhooks.delivery
import onnx
import pytest
from mlflow.entities.webhook import Webhook, WebhookAction, WebhookEntity, WebhookEvent, WebhookStatus
from pydantic import SecretStr

from leukdetect import model_file, registry
from leukdetect.contract import FILES, SHA256_TAGS
from serving.api import admin
from serving.app import create_app
from serving.metrics import Metrics
from serving.models import startup
from serving.models.startup import start
from serving.models.updates import JITTER, Updates
from serving.periodic import Periodic
from serving.request.auth import Key, digest_of
from serving.settings import Settings
from tests import tiny_model
from tests.registry import Registry
from tests.server import serve, write_keys

RED = tiny_model.jpeg((200, 60, 60))
ALWAYS_PRO = 60.0  # a bias with which the tiny model calls everything pro; else red is benign
ADMIN = {"X-API-Key": "o" * 43}
SECRET = "s" * 32
PROBLEM = "urn:leukdetect:problem:"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    write_keys(
        tmp_path / "keys",
        f"{Key('ops', 'admin', digest_of(ADMIN['X-API-Key'])).line()}\n"
        f"{Key('lis', 'predict', digest_of('lis')).line()}\n",
    )
    return tmp_path / "keys"


@pytest.fixture
def settings(a_registry: Registry, tmp_path: Path, keys_file: Path) -> Settings:
    """It asks five times a second."""
    return Settings(
        tracking_uri=a_registry.uri,
        cache_dir=tmp_path / "cache",
        feedback_db=tmp_path / "feedback.db",
        watch_seconds=0.2,
        keys_file=keys_file,
        webhook_secret=SecretStr(SECRET),
    )


@contextmanager
def served(settings: Settings, **changes: Any) -> Iterator[httpx.Client]:
    own = settings.model_copy(update=changes)
    with serve(create_app(own, start(own))) as client:
        client.headers.update(ADMIN)
        client.timeout = httpx.Timeout(30)
        yield client


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def version(client: httpx.Client) -> str:
    answered: str = client.post("/predict", content=RED).json()["model"]["version"]
    return answered


def note(client: httpx.Client) -> str | None:
    health = client.get("/health").json()
    assert health["status"] == ("degraded" if health["note"] else "ok")
    told: str | None = health["note"]
    return told


def metric(client: httpx.Client, name: str) -> float | None:
    """The value of `leukdetect_NAME`, with its labels; None while it has none."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"leukdetect_{name} "):
            return float(line.rsplit(" ", 1)[1])
    return None


def reloads(client: httpx.Client) -> dict[str, float]:
    results = ("switched", "refused", "failed")
    return {each: value for each in results if (value := metric(client, f'reloads_total{{result="{each}"}}'))}


def folders(settings: Settings) -> list[str]:
    """The versions on disk."""
    return sorted(each.name.split("-")[0] for each in (settings.cache_dir / "leukdetect").iterdir() if each.is_dir())


@dataclass
class Tally:
    """What a client that never stops asking has seen."""

    seen: Counter[tuple[int, str, str]] = field(default_factory=Counter)  # status, version, class
    errors: list[Exception] = field(default_factory=list)


@contextmanager
def asking(client: httpx.Client) -> Iterator[Tally]:
    tally, stop = Tally(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, headers=ADMIN, timeout=30) as own:
            while not stop.is_set():
                try:
                    answer = own.post("/predict", content=RED)
                    body = answer.json()
                    tally.seen[answer.status_code, body["model"]["version"], body["class"]] += 1
                except Exception as error:
                    tally.errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield tally
    finally:
        stop.set()
        thread.join()


def test_the_alias_moves_and_no_request_fails(a_registry: Registry, settings: Settings) -> None:
    old = a_registry.add()
    with served(settings) as client, asking(client) as tally:
        until(lambda: tally.seen)
        new = a_registry.add(bias=ALWAYS_PRO)
        until(lambda: version(client) == new)
        assert client.get("/health").json()["previous"]["version"] == old
        assert note(client) is None
        assert reloads(client) == {"switched": 1}
        assert metric(client, "alias_lag_seconds") == 0
        assert metric(client, "registry_reachable") == 1
        infos = [line for line in client.get("/metrics").text.splitlines() if line.startswith("leukdetect_model_info{")]
        assert {line.split('version="')[1][0]: line[-3:] for line in infos} == {old: "0.0", new: "1.0"}
    assert tally.errors == []
    assert tally.seen.keys() == {(200, old, "benign"), (200, new, "pro")}  # each answer is wholly of one version


def test_what_the_alias_goes_back_to_is_in_memory_still(
    a_registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving.models.updates")
    first = a_registry.add()
    with served(settings) as client:
        second = a_registry.add()
        until(lambda: version(client) == second)
        for file in settings.cache_dir.glob(f"leukdetect/{first}-*/*.onnx"):
            file.write_bytes(b"lost")  # it is not read again
        a_registry.move(first)
        until(lambda: version(client) == first)
        assert client.get("/health").json()["previous"]["version"] == second
    assert [each.getMessage() for each in caplog.records] == [
        f"version {second} is in service",
        f"version {first} is in service",
    ]


def test_a_reload_goes_back_at_once_to_the_version_that_the_alias_moved_back_to(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = a_registry.add()
    with served(settings, watch_seconds=0) as client, asking(client) as tally:
        bad = a_registry.add(bias=ALWAYS_PRO)
        assert client.post("/admin/reload").json()["model"]["version"] == bad
        a_registry.move(good)
        monkeypatch.setattr(startup, "load", lambda *_: pytest.fail("a version in memory was loaded again"))
        answer = client.post("/admin/reload").json()
        assert (answer["result"], answer["model"]["version"], answer["note"]) == ("switched", good, None)
        assert version(client) == good
        a_registry.move(bad)  # and forth
        assert client.post("/admin/reload").json()["model"]["version"] == bad
    assert tally.errors == []
    assert {status for status, _, _ in tally.seen} == {200}


def test_going_back_after_a_restart_downloads_nothing(a_registry: Registry, settings: Settings) -> None:
    good = a_registry.add()
    with served(settings) as client:
        bad = a_registry.add()
        until(lambda: version(client) == bad)
    with served(settings, watch_seconds=0) as client:
        assert version(client) == bad
        for source in a_registry.sources:
            source.rename(source.with_suffix(".away"))
        a_registry.move(good)
        assert client.post("/admin/reload").json()["model"]["version"] == good


def edited(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        model = onnx.load(file)
        change(model)
        onnx.save(model, file)

    return edit


def another_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64


def another_answer(file: Path) -> None:
    precision = {name: precision for precision, name in FILES.items()}[file.name]
    golden = tiny_model.write(file, precision=precision).golden[0]
    tiny_model.write(file, precision=precision, golden=[golden.model_copy(update={"probabilities": [0.25] * 4})])


@pytest.mark.parametrize(
    ("candidate", "error"),
    [
        ({"change": lambda file: file.write_bytes(b"no model")}, "file: onnxruntime cannot open"),
        ({"change": edited(another_shape)}, "graph: image is tensor(uint8)"),
        ({"change": edited(lambda model: model.ClearField("metadata_props"))}, "contract: the ONNX file carries no"),
        ({"change": another_answer}, "golden set: a probability differs"),
        (
            {"classes": tiny_model.CLASSES[1:]},
            "classes: it knows early, pre, pro, and the server's",
        ),
        (
            {"tags": dict.fromkeys(SHA256_TAGS.values(), "0" * 64)},
            "leukdetect.onnx of models:/leukdetect/2/artifacts is",
        ),
    ],
    ids=["corrupt", "wrong-shaped", "no contract", "golden set", "other classes", "hash"],
)
def test_a_bad_candidate_is_refused_and_reported_once_and_watching_goes_on(
    a_registry: Registry,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    candidate: dict[str, Any],
    error: str,
) -> None:
    good = a_registry.add()
    with served(settings) as client:
        with asking(client) as tally:
            bad = a_registry.add(**candidate)
            told = f"Version {bad} was refused; version {good} goes on serving."
            until(lambda: note(client) == told)
            assert folders(settings) == [good]
            lag = metric(client, "alias_lag_seconds")
            time.sleep(1)  # some turns later
            assert (metric(client, "alias_lag_seconds") or 0) > (lag or 0)
            assert (note(client), reloads(client)) == (told, {"refused": 1})
            [record] = [record for record in caplog.records if record.name == "serving.models.updates"]
            assert (record.getMessage(), vars(record)["error"][: len(error)]) == (told, error)
        assert tally.errors == []
        assert tally.seen.keys() == {(200, good, "benign")}
        better = a_registry.add(bias=ALWAYS_PRO)
        until(lambda: version(client) == better)
        assert note(client) is None
        assert metric(client, "alias_lag_seconds") == 0
    assert start(settings).champion.located.version == better


def test_a_version_that_never_ends_is_refused_while_the_one_before_goes_on_answering(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "TRIAL_CPU_SECONDS", 2)
    good = a_registry.add()
    with served(settings) as client, asking(client) as tally:
        bad = a_registry.add(change=edited(tiny_model.endless))
        until(lambda: note(client) == f"Version {bad} was refused; version {good} goes on serving.")
    assert tally.errors == []
    assert tally.seen.keys() == {(200, good, "benign")}


@pytest.mark.parametrize("what", ["the file", "the file and the note of its hash"])
def test_a_version_on_disk_that_is_not_what_came_is_fetched_again(
    a_registry: Registry, settings: Settings, what: str
) -> None:
    first, file = a_registry.add(), FILES["int8"]
    with served(settings) as client:
        second = a_registry.add()
        until(lambda: version(client) == second)
    for folder in settings.cache_dir.glob("leukdetect/*/"):
        tiny_model.write(folder / file, precision="int8", bias=ALWAYS_PRO)  # valid, and another
        if what != "the file":
            hashes = registry.came(folder) | {"int8": hashlib.sha256((folder / file).read_bytes()).hexdigest()}
            (folder / registry.CAME).write_text(json.dumps(hashes))
    with served(settings) as client:
        until(lambda: client.post("/predict", content=RED).json()["class"] == "benign")
        assert version(client) == second
        a_registry.move(first)
        until(lambda: version(client) == first)
        assert client.post("/predict", content=RED).json()["class"] == "benign"
        assert note(client) is None
    whole = (a_registry.sources[-1] / "artifacts" / file).read_bytes()
    assert [(folder / file).read_bytes() for folder in settings.cache_dir.glob("leukdetect/*/")] == [whole] * 2


def test_a_version_that_another_server_removes_before_it_is_loaded_is_tried_again(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_registry.add()
    with served(settings) as client:
        load, removed = startup.load, threading.Event()

        def late(settings: Settings, located: registry.Located) -> model_file.Model:
            if not removed.is_set():
                registry.discard(located.path)
            removed.set()
            return load(settings, located)

        monkeypatch.setattr(startup, "load", late)
        new = a_registry.add()
        until(lambda: version(client) == new)
        assert reloads(client) == {"failed": 1, "switched": 1}


def test_a_watch_that_hangs_is_seen_and_ended(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = a_registry.add()
    start(settings)
    monkeypatch.setattr(registry, "ASK_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with served(settings, tracking_uri=uri) as client:
            until(lambda: (metric(client, 'thread_busy_seconds{thread="updates"}') or 0) > 0.5)
            until(lambda: metric(client, "registry_reachable") == 0)
            assert version(client) == good
            told = f"Version {good}, the last known good, serves, since the registry could not be asked."
            assert note(client) == told


def test_other_classes_take_over_where_the_server_is_told_so(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    with served(settings, other_classes=True) as client:
        other = a_registry.add(classes=tiny_model.CLASSES[1:])
        until(lambda: version(client) == other)
        assert [each["key"] for each in client.get("/health").json()["classes"]] == ["early", "pre", "pro"]


def test_a_refused_candidate_is_forgotten_once_the_alias_names_what_serves(
    a_registry: Registry, settings: Settings
) -> None:
    good = a_registry.add()
    with served(settings) as client:
        bad = a_registry.add(change=another_answer)
        until(lambda: note(client))
        a_registry.move(good)
        until(lambda: note(client) is None)
        a_registry.move(bad)
        until(lambda: reloads(client) == {"refused": 2})  # the alias moved: another chance


def test_a_reload_gives_a_repaired_candidate_another_chance(a_registry: Registry, settings: Settings) -> None:
    good = a_registry.add()
    with served(settings, watch_seconds=0) as client:
        bad = a_registry.add()
        file = a_registry.sources[-1] / "artifacts" / FILES["fp32"]
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        answer = client.post("/admin/reload").json()
        assert (answer["result"], answer["model"]["version"]) == ("refused", good)
        assert answer["note"] == f"Version {bad} was refused; version {good} goes on serving."
        file.write_bytes(whole)
        answer = client.post("/admin/reload").json()
        assert (answer["result"], answer["model"]["version"], answer["note"]) == ("switched", bad, None)


def test_a_download_that_failed_is_tried_again(a_registry: Registry, settings: Settings) -> None:
    first = a_registry.add()
    with served(settings) as client:
        second = a_registry.add(alias="nobody")
        away = a_registry.sources[-1].rename(a_registry.folder / "away")
        a_registry.move(second)
        told = f"Version {second} could not be downloaded; version {first} goes on serving."
        until(lambda: note(client) == told)
        until(lambda: reloads(client).get("failed", 0) > 2)  # again and again
        assert folders(settings) == [first]
        assert not list(settings.cache_dir.rglob(".download-*"))
        away.rename(a_registry.sources[-1])
        until(lambda: version(client) == second)
        assert note(client) is None


def test_it_serves_on_while_the_registry_is_down(
    a_registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    a_registry.add()
    with served(settings) as client:
        with a_registry.down():
            until(lambda: metric(client, "registry_reachable") == 0)
            time.sleep(0.5)
            assert version(client) == "1"
            assert client.post("/admin/reload").json()["result"] == "failed"
        until(lambda: metric(client, "registry_reachable") == 1)
        new = a_registry.add()
        until(lambda: version(client) == new)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["the registry cannot be asked"]  # once


def test_a_start_without_the_registry_is_as_good_as_any_once_it_is_back(
    a_registry: Registry, settings: Settings
) -> None:
    good = a_registry.add()
    start(settings)
    with a_registry.down(), served(settings) as client:
        told = f"Version {good}, the last known good, serves, since the registry could not be asked."
        until(lambda: metric(client, "registry_reachable") == 0)
        assert note(client) == told
        a_registry.database.with_suffix(".away").rename(a_registry.database)
        until(lambda: note(client) is None)
        a_registry.database.rename(a_registry.database.with_suffix(".away"))


def test_an_alias_that_is_gone_changes_nothing_and_is_told(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    with served(settings) as client:
        a_registry.client.delete_registered_model_alias("leukdetect", "champion")
        until(lambda: note(client) == "The alias names no version; version 1 goes on serving.")
        assert version(client) == "1"
        a_registry.move("1")
        until(lambda: note(client) is None)


def test_a_reload_switches_at_once_and_says_what_it_did(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    with served(settings, watch_seconds=0) as client:
        assert client.post("/admin/reload").json()["result"] == "unchanged"
        new = a_registry.add()
        time.sleep(0.5)
        assert version(client) == "1"  # by itself it never asks
        answer = client.post("/admin/reload")
        assert (answer.status_code, answer.json()["result"], answer.json()["model"]["version"]) == (
            200,
            "switched",
            new,
        )
        assert version(client) == new


def test_a_reload_that_takes_long_goes_on_and_is_told_so(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gate, ask = threading.Event(), threading.Event(), registry.Registry.ask

    def slowly(*arguments: Any) -> registry.Located | None:
        asked.set()
        assert gate.wait(30)
        return ask(*arguments)

    old = a_registry.add()
    with served(settings, watch_seconds=0) as client:
        new = a_registry.add()
        monkeypatch.setattr(admin, "WAIT_SECONDS", 0.1)
        monkeypatch.setattr(registry.Registry, "ask", slowly)
        answer = client.post("/admin/reload")
        assert (answer.status_code, answer.json()["result"], answer.json()["model"]["version"]) == (
            202,
            "under-way",
            old,
        )
        assert asked.is_set()
        assert version(client) == old  # nobody waits for it
        gate.set()
        until(lambda: version(client) == new)


def test_what_nobody_expected_is_reported_and_watching_goes_on(
    a_registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_registry.add()
    with served(settings) as client:
        with monkeypatch.context() as broken:
            broken.setattr(registry.Registry, "ask", lambda *_: 1 / 0)
            until(lambda: reloads(client).get("failed", 0) > 2)
        new = a_registry.add()
        until(lambda: version(client) == new)
    errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert errors == ["looking for another version failed"]  # once


def test_servers_that_start_together_do_not_ask_together() -> None:
    pauses = [Periodic("updates", 15, lambda: None, JITTER).pause() or 0 for _ in range(200)]
    assert 13 < min(pauses) < 14
    assert 16 < max(pauses) < 17


def test_a_file_is_never_reloaded(settings: Settings, tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    with served(settings, model=str(tmp_path / "m.onnx")) as client:
        answer = client.post("/admin/reload")
        assert (answer.status_code, answer.json()["type"]) == (409, f"{PROBLEM}nothing-to-reload")
        signed = signature("{}", int(time.time()))
        assert client.post("/admin/webhook", content="{}", headers=signed).status_code == 409


def test_only_an_administrator_may_reload(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    with served(settings) as client:
        assert client.post("/admin/reload", headers={"X-API-Key": ""}).status_code == 401
        assert client.post("/admin/reload", headers={"X-API-Key": "lis"}).status_code == 403


def test_the_log_says_who_had_it_reloaded_and_what_came_of_it_and_who_was_refused(
    a_registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    a_registry.add()
    with served(settings, watch_seconds=0) as client:
        client.post("/admin/reload", headers={"X-API-Key": "lis"})
        a_registry.add()
        done = client.post("/admin/reload")
        stamp = int(time.time())
        client.post("/admin/webhook", content="{}", headers=signature("{}", stamp))
    records = [vars(each) for each in caplog.records]
    requests = [(each["key"], each["code"]) for each in records if each["message"] == "request" and "key" in each]
    assert requests == [("lis", 403), ("ops", 200)]
    reload, webhook = (each for each in records if each["message"] == "audit")
    assert reload["request_id"] == done.headers["X-Request-Id"]
    assert [reload[name] for name in ("audit", "key", "result", "before", "after")] == (
        ["reload", "ops", "switched", "1", "2"]
    )
    assert [webhook[name] for name in ("audit", "key", "delivery")] == ["webhook", None, "d"]


def test_mlflows_own_webhook_is_understood(
    a_registry: Registry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")  # MLflow tells nobody at home otherwise
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    a_registry.add()
    with served(settings, watch_seconds=0) as client:
        new = a_registry.add()
        url = str(client.base_url.join("/admin/webhook"))
        hook = Webhook("1", "leukdetect", url, [event], 0, 0, secret=SECRET, status=WebhookStatus.ACTIVE)
        result = mlflow.webhooks.delivery.test_webhook(hook)
        assert (result.success, result.response_status) == (True, 202), result
        until(lambda: version(client) == new)


def test_a_webhook_that_names_no_delivery_is_taken_as_it_is_signed(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    with served(settings, watch_seconds=0) as client:
        headers = signature("{}", int(time.time()), delivery="")
        del headers["X-MLflow-Delivery-Id"]
        assert client.post("/admin/webhook", content="{}", headers=headers).status_code == 202


def signature(body: str, timestamp: int, secret: str = SECRET, delivery: str = "d") -> dict[str, str]:
    signed = mlflow.webhooks.delivery._generate_hmac_signature(secret, delivery, str(timestamp), body)
    return {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": str(timestamp),
        "X-MLflow-Signature": signed,
    }


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (lambda now: {}, "bad-signature"),
        (lambda now: signature("{}", now, secret="another"), "bad-signature"),
        (lambda now: signature("{ }", now), "bad-signature"),
        (lambda now: signature("{}", now) | {"X-MLflow-Timestamp": str(now + 1)}, "bad-signature"),
        (lambda now: signature("{}", now) | {"X-MLflow-Delivery-Id": "e"}, "bad-signature"),
        (lambda now: signature("{}", now - 400), "stale"),
        (lambda now: signature("{}", now + 400), "stale"),
    ],
    ids=["none", "another secret", "another body", "another time", "another delivery", "old", "of the future"],
)
def test_a_webhook_that_is_not_mlflows_is_turned_away(
    a_registry: Registry, settings: Settings, headers: Callable[[int], dict[str, str]], code: str
) -> None:
    a_registry.add()
    with served(settings, watch_seconds=0) as client:
        a_registry.add()
        answer = client.post("/admin/webhook", content="{}", headers=headers(int(time.time())))
        assert (answer.status_code, answer.json()["type"]) == (401, f"{PROBLEM}{code}")
        time.sleep(0.3)
        assert version(client) == "1"


def test_without_a_secret_no_webhook_is_accepted(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    with served(settings, webhook_secret=None) as client:
        answer = client.post("/admin/webhook", content="{}", headers=signature("{}", int(time.time())))
        assert answer.status_code == 403
        assert "LEUKDETECT_WEBHOOK_SECRET" in answer.json()["detail"]


def test_a_large_webhook_is_not_read(a_registry: Registry, settings: Settings) -> None:
    a_registry.add()
    with served(settings) as client:
        assert client.post("/admin/webhook", content=bytes(200_000)).status_code == 413


def test_six_swaps_leave_two_models_in_memory_and_two_versions_on_disk(
    a_registry: Registry, settings: Settings
) -> None:
    versions = [a_registry.add()]
    models, metrics = start(settings), Metrics()
    updates = Updates(settings.model_copy(update={"watch_seconds": 0}), models, metrics)
    updates.start()
    sessions = [weakref.ref(models.champion.session)]
    try:
        for _ in range(6):
            versions.append(a_registry.add())
            assert updates.reload().result(60) == "switched"
            sessions.append(weakref.ref(models.champion.session))
            gc.collect()
            assert [session() is not None for session in sessions] == [False] * (len(sessions) - 2) + [True] * 2
            assert folders(settings) == sorted(versions[-2:])
    finally:
        updates.stop()
    assert models.champion.located.version == versions[-1]
