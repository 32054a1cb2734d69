"""Feedback: real HTTP, real SQLite files, and what happens when they are locked, full, corrupt or not to be had."""

import asyncio
import logging
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge

from serving.api import feedback
from serving.observability import feedback_store
from serving.observability.feedback_store import Confirmed, Feedback
from serving.request.auth import Access, Key, digest_of
from serving.request.upload import Buffered
from tests import tiny_model
from tests.serving.request.test_auth import serve


class Store:
    """A store with its metrics."""

    def __init__(self, path: Path, days: int = 90) -> None:
        registry = CollectorRegistry()
        self.gauge = Gauge("feedback", "x", ["class", "agrees"], registry=registry)
        self.counter = Counter("dropped", "x", registry=registry)
        self.feedback = Feedback(path, days, self.gauge, self.counter)

    def confirm(self, request_id: str, class_key: str) -> Confirmed:
        return asyncio.run(self.feedback.confirm(request_id, class_key))

    @property
    def counts(self) -> dict[tuple[str, str], float]:
        """By confirmed class and agreement; without zeros."""
        [metric] = self.gauge.collect()
        values = {(sample.labels["class"], sample.labels["agrees"]): sample.value for sample in metric.samples}
        return {labels: value for labels, value in values.items() if value}

    @property
    def dropped(self) -> float:
        [metric] = self.counter.collect()
        return metric.samples[0].value


@contextmanager
def opened(path: Path, days: int = 90) -> Iterator[Store]:
    store = Store(path, days)
    try:
        yield store
    finally:
        store.feedback.close()


def rows(path: Path) -> set[tuple[str, str, str | None]]:
    """What the file holds of predictions."""
    with closing(sqlite3.connect(path)) as db:
        return set(db.execute("SELECT request_id, class, version FROM predictions"))


def is_ready(path: Path) -> bool:
    """Whether the file is there with its tables."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'feedback'").fetchone() == (1,)


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "feedback.db"


def test_feedback_right_after_its_prediction_is_known_and_counted(path: Path) -> None:
    with opened(path) as store:
        store.feedback.record("a", "pre", "7")
        store.feedback.record("b", "pro", None)
        assert store.confirm("a", "pre") == Confirmed(
            request_id="a", predicted="pre", confirmed="pre", agrees=True, version="7"
        )
        assert store.confirm("b", "pre") == Confirmed(
            request_id="b", predicted="pro", confirmed="pre", agrees=False, version=None
        )
        assert store.counts == {("pre", "true"): 1, ("pre", "false"): 1}


def test_a_second_feedback_replaces_the_first(path: Path) -> None:
    with opened(path) as store:
        store.feedback.record("a", "pre", "7")
        store.confirm("a", "pro")
        assert store.counts == {("pro", "false"): 1}
        assert store.confirm("a", "pre").agrees
        assert store.counts == {("pre", "true"): 1}


def test_an_id_nobody_answered_is_unknown(path: Path) -> None:
    with opened(path) as store, pytest.raises(KeyError):
        store.confirm("a", "pre")


def test_an_id_that_comes_twice_keeps_its_first_answer_and_harms_no_other(path: Path) -> None:
    with opened(path) as store:
        for request_id, class_key in (("a", "pre"), ("a", "pro"), ("b", "pro")):
            store.feedback.record(request_id, class_key, "7")
    assert rows(path) == {("a", "pre", "7"), ("b", "pro", "7")}
    assert store.dropped == 0


def test_closing_writes_what_waits_and_the_next_start_shows_the_counts(path: Path) -> None:
    with opened(path) as store:
        store.feedback.record("a", "pre", "7")
        store.confirm("a", "pre")
        for number in range(1000):
            store.feedback.record(f"n{number}", "pro", "7")
    assert len(rows(path)) == 1001
    assert store.dropped == 0
    with opened(path) as store:
        eventually(lambda: store.counts == {("pre", "true"): 1}, "the counts")


def test_after_closing_answers_are_counted_as_dropped_and_a_label_is_refused(path: Path) -> None:
    with opened(path) as store:
        pass
    store.feedback.record("a", "pre", "7")
    assert store.dropped == 1
    with pytest.raises(OSError, match="stopping"):
        store.confirm("a", "pre")


def test_what_waits_too_long_is_deleted_and_what_is_confirmed_stays(path: Path) -> None:
    with opened(path) as store:
        for request_id in "abcdef":
            store.feedback.record(request_id, "pre", "7")
        store.confirm("a", "pre")
        store.confirm("f", "pre")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE predictions SET at = at - 11 * 86400 WHERE request_id <> 'f'")
    with opened(path, days=10) as store:
        eventually(lambda: rows(path) == {("a", "pre", "7"), ("f", "pre", "7")}, "the old rows are still there")
        assert store.counts == {("pre", "true"): 2}
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT request_id FROM feedback").fetchall() == [("a",), ("f",)]


def test_a_clock_that_is_far_ahead_deletes_nothing_and_is_told_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as store:
        for request_id in "abc":
            store.feedback.record(request_id, "pre", "7")
        store.confirm("a", "pre")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE predictions SET at = at - 100 * 86400")
    with opened(path) as store:
        eventually(lambda: "is the clock right?" in caplog.text, "the jump was not told of")
        store.feedback.record("d", "pre", "7")
        eventually(lambda: len(rows(path)) == 4, "a row is missing")


def test_a_locked_file_costs_answers_but_never_waits_and_is_reported_once(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_store, "BUSY_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    with opened(path) as store:
        store.feedback.record("a", "pre", "7")
        store.confirm("a", "pre")
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            store.feedback.record("lost", "pre", "7")
            eventually(lambda: store.dropped == 1, "not dropped")
            store.feedback.record("lost too", "pre", "7")
            eventually(lambda: store.dropped == 2, "not dropped")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                store.confirm("a", "pro")
            assert errors(caplog) == ["answers cannot be kept for feedback"]
            db.execute("ROLLBACK")
        store.feedback.record("b", "pre", "7")
        store.confirm("b", "pre")
        assert caplog.records[-1].getMessage() == "answers are kept for feedback again"
        assert store.counts == {("pre", "true"): 2}
    assert rows(path) == {("a", "pre", "7"), ("b", "pre", "7")}


def test_a_full_disk_costs_answers_and_they_are_kept_again_when_there_is_room(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit on a file's size fails the same writes as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as store:
        store.feedback.record("a", "pre", "7")
        store.confirm("a", "pre")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            for number in range(8000):
                store.feedback.record(f"{number:060}", "pre", "7")
            eventually(lambda: store.dropped, "nothing was dropped")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.feedback.record("b", "pre", "7")
        assert store.confirm("b", "pre").agrees
    assert errors(caplog) == ["answers cannot be kept for feedback"]
    assert {("a", "pre", "7"), ("b", "pre", "7")} <= rows(path)
    assert len(rows(path)) == 8002 - store.dropped


def test_a_disk_slower_than_the_answers_costs_some_of_them_and_bounded_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_store, "MOST_WAITING", 10)
    with opened(path) as store:
        eventually(lambda: is_ready(path), "no file")
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            for number in range(100):
                store.feedback.record(str(number), "pre", "7")
            assert store.dropped >= 80  # 10 wait, and 10 more may be in the writer's hands
            db.execute("ROLLBACK")


def test_where_no_file_can_be_the_server_goes_on_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with opened(tmp_path / "cache" / "feedback.db") as store:
        store.feedback.record("a", "pre", "7")
        with pytest.raises(OSError, match="exists"):
            store.confirm("a", "pre")
        assert store.dropped == 1
        (tmp_path / "cache").unlink()
        store.feedback.record("a", "pre", "7")
        assert store.confirm("a", "pre").agrees
    assert errors(caplog) == ["answers cannot be kept for feedback"]


def test_a_corrupt_file_is_moved_aside_at_the_start(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 1000)
    with opened(path) as store:
        store.feedback.record("a", "pre", "7")
        assert store.confirm("a", "pre").agrees
    assert path.with_name("feedback.db.corrupt").read_bytes().startswith(b"not a database")
    assert errors(caplog) == ["the feedback file is corrupt: it is moved aside, and a new one begun"]


def test_a_file_that_proves_corrupt_in_use_is_moved_aside_whole(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as store:
        for number in range(2000):
            store.feedback.record(f"{number:060}", "pre", "7")
    with path.open("r+b") as file:  # all but the page with the schema
        file.seek(4096)
        file.write(b"\xaa" * (path.stat().st_size - 4096))
    with closing(sqlite3.connect(path)) as another_process:
        another_process.execute("SELECT * FROM sqlite_schema").fetchall()
        with opened(path) as store:
            eventually(lambda: errors(caplog), "nobody noticed")
            store.feedback.record("a", "pre", "7")
            assert store.confirm("a", "pre").agrees
        aside = {each.name for each in path.parent.glob("*.corrupt*")}
    assert aside == {f"feedback.db.corrupt{suffix}" for suffix in ("", "-wal", "-shm")}
    assert rows(path) == {("a", "pre", "7")}


def test_a_client_that_goes_away_changes_nothing_for_the_next(path: Path) -> None:
    async def two(store: Store, lock: sqlite3.Connection) -> Confirmed:
        impatient = asyncio.create_task(store.feedback.confirm("a", "pro"))
        await asyncio.sleep(0.1)  # by now it waits behind the answer, and that for the lock
        impatient.cancel()
        await asyncio.sleep(0)
        lock.execute("ROLLBACK")
        return await store.feedback.confirm("a", "pre")

    with opened(path) as store:
        eventually(lambda: is_ready(path), "no table")
        with closing(sqlite3.connect(path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            store.feedback.record("a", "pre", "7")
            assert asyncio.run(two(store, lock)).agrees
        assert store.counts == {("pre", "true"): 1}


@contextmanager
def served(path: Path, keys_file: Path | None = None) -> Iterator[tuple[httpx.Client, Store]]:
    """The route, over what it needs of a service."""
    app = FastAPI()
    app.include_router(feedback.router)
    app.state.access = Access(keys_file)
    champion = SimpleNamespace(contract=SimpleNamespace(classes=tiny_model.CLASSES))
    with opened(path) as store, serve(app) as client:
        app.state.service = SimpleNamespace(
            feedback=store.feedback,
            models=SimpleNamespace(champion=champion),
            buffered=Buffered(1_000_000),
            settings=SimpleNamespace(read_seconds=30),
        )
        yield client, store


def test_the_route_answers_with_the_prediction_beside_the_label(path: Path) -> None:
    with served(path) as (client, store):
        store.feedback.record("4b825dc642cb6eb9a060e54bf8d69288-12", "pre", "7")
        answer = client.post("/feedback", json={"request_id": "4b825dc642cb6eb9a060e54bf8d69288-12", "class": "early"})
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": "4b825dc642cb6eb9a060e54bf8d69288-12",
        "predicted": "pre",
        "confirmed": "early",
        "agrees": False,
        "version": "7",
    }


@pytest.mark.parametrize(
    ("body", "status", "code", "detail"),
    [
        ('{"request_id": "b", "class": "pre"}', 404, "unknown-prediction", "No prediction of this request id"),
        ('{"request_id": "a", "class": "aml"}', 422, "unknown-class", "must be one of benign, early, pre, pro."),
        ('{"request_id": "a"}', 422, "broken-label", "class: Field required."),
        ('{"request_id": "a b", "class": "pre"}', 422, "broken-label", "request_id: String should match pattern"),
        ('{"request_id": "a\\u0000", "class": "pre"}', 422, "broken-label", "request_id: String should match pattern"),
        ('{"request_id": "\\ud800", "class": "pre"}', 422, "broken-label", "body: Invalid JSON"),
        ('{"request_id": "a", "class": "pre", "image": "x"}', 422, "broken-label", "image: Extra inputs are not"),
        ("no json", 422, "broken-label", "body: Invalid JSON"),
        (b"\xff\xfe", 422, "broken-label", "body: Invalid JSON"),
        (bytes(10_001), 413, "body-too-large", "At most"),
    ],
)
def test_a_bad_label_is_a_problem_that_says_what_to_do(
    path: Path, body: str | bytes, status: int, code: str, detail: str
) -> None:
    with served(path) as (client, store):
        store.feedback.record("a", "pre", "7")
        answer = client.post("/feedback", content=body)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"urn:leukdetect:problem:{code}")
    assert detail in problem["detail"]
    assert store.counts == {}


def test_while_it_cannot_be_kept_the_route_says_to_come_again(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with served(tmp_path / "cache" / "feedback.db") as (client, _):
        answer = client.post("/feedback", json={"request_id": "a", "class": "pre"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert answer.json()["type"] == "urn:leukdetect:problem:feedback-unavailable"


def test_the_route_needs_a_key_where_keys_are_in_use(path: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(Key("lis", "predict", digest_of("k")).line())
    with served(path, tmp_path / "keys") as (client, store):
        store.feedback.record("a", "pre", "7")
        label = {"request_id": "a", "class": "pre"}
        assert client.post("/feedback", json=label).status_code == 401
        assert client.post("/feedback", json=label, headers={"X-API-Key": "k"}).status_code == 200


def test_the_api_shows_the_body_and_the_answer_by_their_names(path: Path) -> None:
    with served(path) as (client, _):
        operation = client.get("/openapi.json").json()["paths"]["/feedback"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"request_id", "class"}
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Confirmed")
    assert {"401", "404", "422", "503"} <= operation["responses"].keys()
