"""Feedback: real HTTP, real SQLite files, and what happens when they are locked, full, corrupt or not to be had."""

import asyncio
import logging
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from serving.api import feedback
from serving.metrics import Metrics
from serving.observability import feedback_file, feedback_store
from serving.observability.feedback_store import Confirmed, Feedback
from serving.problems import ProblemError
from serving.request.auth import Access, Key, Role, digest_of
from serving.request.budget import Budget
from serving.request.upload import Buffered
from tests import tiny_model
from tests.server import write_keys
from tests.serving.request.test_auth import serve

KEYS = ("benign", "early", "pre", "pro")


def key(name: str, role: Role = "predict") -> Key:
    return Key(name, role, digest_of(name))


class Store:
    """A store with its metrics."""

    def __init__(self, path: Path, days: int = 90) -> None:
        self.metrics = Metrics()
        self.feedback = Feedback(path, days, self.metrics)

    def record(self, request_id: str, class_key: str, version: str | None, by: str | None = None) -> None:
        self.feedback.record(request_id, class_key, version, KEYS, by)

    def confirm(
        self, request_id: str, class_key: str, by: Key | None = None, served: Sequence[str] = KEYS
    ) -> Confirmed:
        return asyncio.run(self.feedback.confirm(request_id, class_key, by, served))

    def given(self, kind: str) -> float | None:
        return self.metrics.registry.get_sample_value("leukdetect_feedback_labels_total", {"kind": kind})

    @property
    def counts(self) -> dict[tuple[str, str], float]:
        """By confirmed class and agreement; without zeros."""
        [metric] = self.metrics.feedback.collect()
        values = {(sample.labels["class"], sample.labels["agrees"]): sample.value for sample in metric.samples}
        return {labels: value for labels, value in values.items() if value}

    @property
    def dropped(self) -> float:
        [metric] = self.metrics.feedback_dropped.collect()
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
        return db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'labels'").fetchone() == (1,)


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
        store.record("a", "pre", "7")
        store.record("b", "pro", None)
        assert store.confirm("a", "pre") == Confirmed(
            request_id="a", predicted="pre", confirmed="pre", agrees=True, version="7"
        )
        assert store.confirm("b", "pre") == Confirmed(
            request_id="b", predicted="pro", confirmed="pre", agrees=False, version=None
        )
        assert store.counts == {("pre", "true"): 1, ("pre", "false"): 1}


def test_a_second_feedback_replaces_the_first(path: Path) -> None:
    with opened(path) as store:
        store.record("a", "pre", "7")
        store.confirm("a", "pro")
        assert store.counts == {("pro", "false"): 1}
        assert store.confirm("a", "pre").agrees
        assert store.counts == {("pre", "true"): 1}


def test_an_id_nobody_answered_is_unknown(path: Path) -> None:
    with opened(path) as store, pytest.raises(ProblemError) as refused:
        store.confirm("a", "pre")
    assert (refused.value.status, refused.value.code) == (404, "unknown-prediction")


def test_an_id_that_comes_twice_keeps_its_first_answer_and_harms_no_other(path: Path) -> None:
    with opened(path) as store:
        for request_id, class_key in (("a", "pre"), ("a", "pro"), ("b", "pro")):
            store.record(request_id, class_key, "7")
    assert rows(path) == {("a", "pre", "7"), ("b", "pro", "7")}
    assert store.dropped == 0


def test_closing_writes_what_waits_and_the_next_start_shows_the_counts(path: Path) -> None:
    with opened(path) as store:
        store.record("a", "pre", "7")
        store.confirm("a", "pre")
        for number in range(1000):
            store.record(f"n{number}", "pro", "7")
    assert len(rows(path)) == 1001
    assert store.dropped == 0
    with opened(path) as store:
        eventually(lambda: store.counts == {("pre", "true"): 1}, "the counts")


def test_after_closing_answers_are_counted_as_dropped_and_a_label_is_refused(path: Path) -> None:
    with opened(path) as store:
        pass
    store.record("a", "pre", "7")
    assert store.dropped == 1
    with pytest.raises(OSError, match="stopping"):
        store.confirm("a", "pre")


def test_what_waits_too_long_is_deleted_and_what_is_confirmed_stays(path: Path) -> None:
    with opened(path) as store:
        for request_id in "abcdef":
            store.record(request_id, "pre", "7")
        store.confirm("a", "pre")
        store.confirm("f", "pre")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE predictions SET at = at - 11 * 86400 WHERE request_id <> 'f'")
    with opened(path, days=10) as store:
        eventually(lambda: rows(path) == {("a", "pre", "7"), ("f", "pre", "7")}, "the old rows are still there")
        assert store.counts == {("pre", "true"): 2}
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT request_id FROM labels").fetchall() == [("a",), ("f",)]


def test_a_clock_that_is_far_ahead_deletes_nothing_and_is_told_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as store:
        for request_id in "abc":
            store.record(request_id, "pre", "7")
        store.confirm("a", "pre")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE predictions SET at = at - 100 * 86400")
    with opened(path) as store:
        eventually(lambda: "is the clock right?" in caplog.text, "the jump was not told of")
        store.record("d", "pre", "7")
        eventually(lambda: len(rows(path)) == 4, "a row is missing")


@pytest.mark.parametrize("hours", [100 * 24, -100 * 24])
def test_a_clock_that_is_set_while_the_server_runs_deletes_nothing_and_is_told_of(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(feedback_store, "PRUNE_SECONDS", 0.01)
    clock = time.time
    with opened(path) as store:
        for request_id in "abc":
            store.record(request_id, "pre", "7")
        eventually(lambda: len(rows(path)) == 3 if is_ready(path) else False, "the rows")
        monkeypatch.setattr(time, "time", lambda: clock() + 3600 * hours)
        store.record("d", "pre", "7")
        eventually(lambda: f"the clock has jumped by {hours}.0 hours" in caplog.text, "the jump was not told of")
        store.record("e", "pre", "7")
        eventually(lambda: len(rows(path)) == 5, "a row is missing")
    assert caplog.text.count("no answer is deleted until a restart") == 1


def test_answers_from_the_future_are_told_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as store:
        store.record("a", "pre", "7")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE predictions SET at = at + 86400")
    with opened(path):
        eventually(lambda: "answers are from the future" in caplog.text, "nobody noticed")


def test_a_locked_file_costs_answers_but_never_waits_and_is_reported_once(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_file, "BUSY_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    with opened(path) as store:
        store.record("a", "pre", "7")
        store.confirm("a", "pre")
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            store.record("lost", "pre", "7")
            eventually(lambda: store.dropped == 1, "not dropped")
            store.record("lost too", "pre", "7")
            eventually(lambda: store.dropped == 2, "not dropped")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                store.confirm("a", "pro")
            assert errors(caplog) == ["answers cannot be kept for feedback"]
            db.execute("ROLLBACK")
        store.record("b", "pre", "7")
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
        store.record("a", "pre", "7")
        store.confirm("a", "pre")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            for number in range(8000):
                store.record(f"{number:060}", "pre", "7")
            eventually(lambda: store.dropped, "nothing was dropped")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.record("b", "pre", "7")
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
                store.record(str(number), "pre", "7")
            assert store.dropped >= 80  # 10 wait, and 10 more may be in the writer's hands
            db.execute("ROLLBACK")


def test_where_no_file_can_be_the_server_goes_on_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with opened(tmp_path / "cache" / "feedback.db") as store:
        store.record("a", "pre", "7")
        with pytest.raises(OSError, match="exists"):
            store.confirm("a", "pre")
        assert store.dropped == 1
        (tmp_path / "cache").unlink()
        store.record("a", "pre", "7")
        assert store.confirm("a", "pre").agrees
    assert errors(caplog) == ["answers cannot be kept for feedback"]


def test_a_corrupt_file_is_moved_aside_at_the_start(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 1000)
    with opened(path) as store:
        store.record("a", "pre", "7")
        assert store.confirm("a", "pre").agrees
    assert path.with_name("feedback.db.corrupt").read_bytes().startswith(b"not a database")
    assert errors(caplog) == ["the feedback file is corrupt: it is moved aside, and a new one begun"]


def test_a_file_that_proves_corrupt_in_use_is_moved_aside_whole(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as store:
        for number in range(2000):
            store.record(f"{number:060}", "pre", "7")
    with path.open("r+b") as file:  # all but the page with the schema
        file.seek(4096)
        file.write(b"\xaa" * (path.stat().st_size - 4096))
    with closing(sqlite3.connect(path)) as another_process:
        another_process.execute("SELECT * FROM sqlite_schema").fetchall()
        with opened(path) as store:
            eventually(lambda: errors(caplog), "nobody noticed")
            store.record("a", "pre", "7")
            assert store.confirm("a", "pre").agrees
        aside = {each.name for each in path.parent.glob("*.corrupt*")}
    assert aside == {f"feedback.db.corrupt{suffix}" for suffix in ("", "-wal", "-shm")}
    assert rows(path) == {("a", "pre", "7")}


def test_a_client_that_goes_away_changes_nothing_for_the_next(path: Path) -> None:
    async def two(store: Store, lock: sqlite3.Connection) -> Confirmed:
        impatient = asyncio.create_task(store.feedback.confirm("a", "pro", None, KEYS))
        await asyncio.sleep(0.1)  # by now it waits behind the answer, and that for the lock
        impatient.cancel()
        await asyncio.sleep(0)
        lock.execute("ROLLBACK")
        return await store.feedback.confirm("a", "pre", None, KEYS)

    with opened(path) as store:
        eventually(lambda: is_ready(path), "no table")
        with closing(sqlite3.connect(path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            store.record("a", "pre", "7")
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
            buffered=Buffered(1_000_000, Budget(2_000_000)),
            settings=SimpleNamespace(read_seconds=30),
        )
        yield client, store


def test_the_route_answers_with_the_prediction_beside_the_label(path: Path) -> None:
    with served(path) as (client, store):
        store.record("4b825dc642cb6eb9a060e54bf8d69288-12", "pre", "7")
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
        store.record("a", "pre", "7")
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


def test_only_the_key_that_asked_or_a_reviewer_may_confirm(path: Path, tmp_path: Path) -> None:
    keys = [key("lis"), key("ward-7"), key("dr-a", "reviewer"), key("ops", "admin")]
    write_keys(tmp_path / "keys", "\n".join(each.line() for each in keys))
    with served(path, tmp_path / "keys") as (client, store):
        store.record("a", "pre", "7", by="lis")
        store.record("nobody-s", "pre", "7")  # from before keys were in use

        def confirm(name: str | None, request_id: str = "a", class_key: str = "pre") -> int:
            headers = {"X-API-Key": name} if name else {}
            answer = client.post("/feedback", json={"request_id": request_id, "class": class_key}, headers=headers)
            if answer.status_code == 403:
                assert answer.json()["type"] == "urn:leukdetect:problem:not-yours"
            return answer.status_code

        assert confirm(None) == 401
        assert [confirm(each.name) for each in keys] == [200, 403, 200, 200]
        assert [confirm(each.name, "nobody-s") for each in keys] == [403, 403, 200, 200]
        assert confirm("ward-7", class_key="pro") == 403
        assert store.counts == {("pre", "true"): 2}


def test_the_first_label_and_each_change_are_kept_with_who_and_when(path: Path) -> None:
    began = int(time.time())
    with opened(path) as store:
        store.record("a", "pre", "7", by="lis")
        for class_key, by in (("pre", "lis"), ("pre", "lis"), ("pro", "lis"), ("early", "dr-a")):
            store.confirm("a", class_key, key(by, "reviewer" if by == "dr-a" else "predict"))
        assert [store.given(kind) for kind in ("first", "changed", "repeated")] == [1, 2, 1]
        assert store.counts == {("early", "false"): 1}
    with closing(sqlite3.connect(path)) as db:
        kept = db.execute("SELECT request_id, confirmed, confirmed_by FROM labels ORDER BY id").fetchall()
        [(first, last)] = db.execute("SELECT min(at), max(at) FROM labels")
    assert kept == [("a", "pre", "lis"), ("a", "pro", "lis"), ("a", "early", "dr-a")]
    assert began <= first <= last <= time.time()


def test_a_label_that_is_changed_without_end_fills_no_disk(path: Path) -> None:
    with opened(path) as store:
        store.record("a", "pre", "7")
        for number in range(feedback_store.MOST_CHANGES + 1):
            store.confirm("a", ("pre", "pro")[number % 2])
        with pytest.raises(ProblemError) as refused:
            store.confirm("a", "pro")
        assert (refused.value.status, refused.value.code) == (409, "changed-too-often")
        assert store.confirm("a", "pre").agrees  # as it stands


def test_a_label_is_judged_by_the_classes_of_the_version_that_answered(path: Path) -> None:
    with opened(path) as store:
        store.record("a", "pre", "7")
        now = ("aml", "healthy")
        assert store.confirm("a", "pro", served=now).confirmed == "pro"
        with pytest.raises(ProblemError, match="must be one of benign, early, pre, pro") as refused:
            store.confirm("a", "aml", served=now)
        assert refused.value.status == 422


BEFORE = """
CREATE TABLE predictions (
    request_id TEXT PRIMARY KEY, class TEXT NOT NULL, version TEXT, at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX predictions_at ON predictions (at);
CREATE TABLE feedback (
    request_id TEXT PRIMARY KEY REFERENCES predictions ON DELETE CASCADE, confirmed TEXT NOT NULL, at INTEGER NOT NULL
) WITHOUT ROWID;
"""


def test_a_file_of_an_earlier_server_keeps_all_that_it_holds(path: Path) -> None:
    path.parent.mkdir()
    now = int(time.time())
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(BEFORE)
        db.executemany("INSERT INTO predictions VALUES (?, ?, ?, ?)", [("a", "pre", "6", now), ("b", "pro", None, now)])
        db.execute("INSERT INTO feedback VALUES ('a', 'early', ?)", [now])
    with opened(path) as store:
        eventually(lambda: store.counts == {("early", "false"): 1}, "the old label")
        store.confirm("b", "pro", key("dr-a", "reviewer"))
        with pytest.raises(ProblemError, match="must be one of pre, pro"):
            store.confirm("b", "aml", served=("pre", "pro"))  # nobody knows its classes any more: the present ones
    with closing(sqlite3.connect(path)) as db:
        kept = db.execute("SELECT request_id, confirmed, confirmed_by FROM labels ORDER BY id").fetchall()
    assert kept == [("a", "early", None), ("b", "pro", "dr-a")]
    assert rows(path) == {("a", "pre", "6"), ("b", "pro", None)}


def test_a_step_to_the_next_version_of_the_file_is_done_whole_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(BEFORE)
        before = list(db.iterdump())
    monkeypatch.setattr(feedback_file, "_STEPS", (*feedback_file._STEPS[:1], feedback_file._STEPS[1] + "no SQL;"))
    with opened(path) as store:
        store.record("a", "pre", "7")
        eventually(lambda: store.dropped == 1, "it was to fail")
    with closing(sqlite3.connect(path)) as db:
        assert list(db.iterdump()) == before


def test_the_api_shows_the_body_and_the_answer_by_their_names(path: Path) -> None:
    with served(path) as (client, _):
        operation = client.get("/openapi.json").json()["paths"]["/feedback"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"request_id", "class"}
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Confirmed")
    assert {"401", "404", "422", "503"} <= operation["responses"].keys()
