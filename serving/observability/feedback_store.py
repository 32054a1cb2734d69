"""`POST /feedback`: what people confirmed about answers, and the SQLite file that remembers each answer's class.

Kept of an answer are its request id, class, model version and time: no image, and nothing of the client.
"""

import asyncio
import fcntl
import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import APIRouter, Depends, Request
from prometheus_client import Counter, Gauge
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving import problems
from serving.request import auth, upload

BATCH_SECONDS = 0.2  # answers of this time are written together
MOST_WAITING = 10_000  # answers in memory; a disk that is slower than this loses some
BUSY_SECONDS = 2.0  # how long another process may hold the file
CONFIRM_SECONDS = 10.0
MAX_BODY_BYTES = 10_000
PRUNE_SECONDS = 3600.0
PRUNE_ROWS = 10_000  # deleted at once; more would keep other writers waiting

_TABLES = """
CREATE TABLE IF NOT EXISTS predictions (
    request_id TEXT PRIMARY KEY, class TEXT NOT NULL, version TEXT, at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS predictions_at ON predictions (at);
CREATE TABLE IF NOT EXISTS feedback (
    request_id TEXT PRIMARY KEY REFERENCES predictions ON DELETE CASCADE, confirmed TEXT NOT NULL, at INTEGER NOT NULL
) WITHOUT ROWID;
"""
# One statement for all: for each, SQLite would let go of the interpreter's lock, and so switch threads.
_KEEP = """
INSERT OR IGNORE INTO predictions SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)
"""
_ANSWER = """
SELECT class, version, confirmed FROM predictions LEFT JOIN feedback USING (request_id) WHERE request_id = ?
"""
_COUNTS = """
SELECT confirmed, confirmed = class, count(*) FROM feedback JOIN predictions USING (request_id) GROUP BY 1, 2
"""
_PRUNE = """
DELETE FROM predictions WHERE request_id IN (SELECT request_id FROM predictions WHERE at < ? LIMIT ?)
"""

log = logging.getLogger(__name__)


class Label(BaseModel):
    """A confirmed label."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"request_id": "4b825dc642cb6eb9a060e54bf8d69288", "class": "pre"}]},
    )

    request_id: str = Field(pattern="^[0-9A-Za-z_-]{1,64}$", description="of the prediction")
    class_: str = Field(alias="class", max_length=100, description="the key of the class that was confirmed")


class Confirmed(BaseModel):
    """A label that was kept, beside the answer that it is about."""

    request_id: str
    predicted: str = Field(description="the class that was answered")
    confirmed: str = Field(description="the class that was confirmed")
    agrees: bool
    version: str | None = Field(description="of the model that answered; null for a file that was named directly")


@dataclass(frozen=True)
class _Answer:
    request_id: str
    class_key: str
    version: str | None
    at: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class _Question:
    request_id: str
    class_key: str
    future: Future[Confirmed | None] = field(default_factory=Future)


class Feedback:
    """Remembers answers and what was confirmed about them, for `days`. Several processes may share the file.

    One thread owns the file, and nobody else waits for it: where it cannot be written (full, locked, not allowed),
    predictions go on, answers are dropped and counted in `dropped`, and the log says so once, and once more when it
    works again. A file that is corrupt is moved aside to `….corrupt` (in place of an earlier one), logged as an
    error, and a new one begun: a server that refused to serve would cost more than the counts.

    `counts` has the labels class (the confirmed one) and agrees ("true", "false").
    """

    def __init__(self, path: Path, days: int, counts: Gauge, dropped: Counter) -> None:
        self._path = path
        self._days = days
        self._counts = counts
        self._dropped = dropped
        self._shown: set[tuple[str, bool]] = set()
        self._queue: queue.SimpleQueue[_Answer | _Question | None] = queue.SimpleQueue()
        self._urgent = threading.Event()
        self._closed = False
        self._failing = False
        self._prune_at = time.monotonic()
        self._file: _File | None = None
        self._corrupt: int | None = None  # the inode of a file that proved corrupt while it was in use
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    def record(self, request_id: str, class_key: str, version: str | None) -> None:
        """Remembers an answer. Returns at once; it is written a moment later."""
        if self._closed or self._queue.qsize() >= MOST_WAITING:
            self._dropped.inc()
        else:
            self._queue.put(_Answer(request_id, class_key, version))

    async def confirm(self, request_id: str, class_key: str) -> Confirmed:
        """Keeps a confirmed label, in place of an earlier one for the same answer. Call it on the event loop.

        Raises:
            KeyError: no answer of this id is known (any more).
            sqlite3.Error, OSError: it cannot be kept now.
        """
        for pause in (0, 2 * BATCH_SECONDS):  # another process may have answered, and not have written it yet
            await asyncio.sleep(pause)
            if self._closed:
                raise OSError("the server is stopping")
            question = _Question(request_id, class_key)
            self._queue.put(question)  # behind the answers that wait, so that they are written first
            self._urgent.set()
            confirmed = await asyncio.wait_for(asyncio.wrap_future(question.future), CONFIRM_SECONDS)
            if confirmed is not None:
                return confirmed
        raise KeyError(request_id)

    def close(self) -> None:
        """Writes what waits, then ends the thread. Call it where `confirm` is called, or when nobody does any more."""
        self._closed = True
        self._queue.put(None)
        self._urgent.set()
        self._thread.join(CONFIRM_SECONDS)  # a disk that hangs must not keep the process from ending

    def _run(self) -> None:
        while True:
            items = self._take()
            self._write([item for item in items if isinstance(item, _Answer)])
            for item in items:
                if isinstance(item, _Question) and item.future.set_running_or_notify_cancel():
                    self._settle(item)
            if None in items:
                break
            if time.monotonic() >= self._prune_at:
                self._prune()
        if self._file:
            self._file.db.close()

    def _take(self) -> list[_Answer | _Question | None]:
        """What waits, after a pause for more of it; nothing when it is time to prune."""
        try:
            items = [self._queue.get(timeout=max(0, self._prune_at - time.monotonic()))]
        except queue.Empty:
            return []
        self._urgent.wait(BATCH_SECONDS)  # one wake-up a batch, not one an answer
        self._urgent.clear()
        return items + [self._queue.get() for _ in range(self._queue.qsize())]

    def _write(self, answers: list[_Answer]) -> None:
        if not answers:
            return
        rows = [(answer.request_id, answer.class_key, answer.version, answer.at) for answer in answers]
        try:
            with self._transaction() as db:
                db.execute(_KEEP, [json.dumps(rows)])
        except (sqlite3.Error, OSError):
            self._dropped.inc(len(rows))

    def _settle(self, question: _Question) -> None:
        try:
            with self._transaction() as db:
                confirmed = self._confirm(db, question.request_id, question.class_key)
        except (sqlite3.Error, OSError) as error:
            question.future.set_exception(error)
        else:
            question.future.set_result(confirmed)

    def _confirm(self, db: sqlite3.Connection, request_id: str, class_key: str) -> Confirmed | None:
        row = db.execute(_ANSWER, (request_id,)).fetchone()
        if row is None:
            return None
        predicted, version, before = row
        db.execute("INSERT OR REPLACE INTO feedback VALUES (?, ?, ?)", (request_id, class_key, int(time.time())))
        if before is not None:
            self._shown.add((before, before == predicted))  # another process may have shown it
        self._show(db)
        return Confirmed(
            request_id=request_id,
            predicted=predicted,
            confirmed=class_key,
            agrees=class_key == predicted,
            version=version,
        )

    def _prune(self) -> None:
        """Deletes the oldest of what is too old; comes again at once when there is more of it."""
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        too_old = int(time.time()) - self._days * 24 * 3600
        try:
            with self._transaction() as db:
                deleted = db.execute(_PRUNE, (too_old, PRUNE_ROWS)).rowcount
                self._show(db)
        except (sqlite3.Error, OSError):
            return
        if deleted == PRUNE_ROWS:
            self._prune_at = time.monotonic()

    def _show(self, db: sqlite3.Connection) -> None:
        """Sets the counts; what was shown and is no more becomes 0."""
        counts = dict.fromkeys(self._shown, 0)
        counts |= {(confirmed, bool(agrees)): count for confirmed, agrees, count in db.execute(_COUNTS)}
        for (confirmed, agrees), count in counts.items():
            self._counts.labels(confirmed, str(agrees).lower()).set(count)
        self._shown.update(counts)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The database, until the block ends; after an error the next block begins with opening it again."""
        try:
            if self._file is None:
                self._file = _open(self._path, self._corrupt)
                self._corrupt = None
            with self._file.db as db:
                db.execute("BEGIN IMMEDIATE")
                yield db
        except (sqlite3.Error, OSError) as error:
            if not self._failing:
                log.error("answers cannot be kept for feedback", extra={"error": str(error)})
                self._failing = True
            if self._file:
                self._file.db.close()
                self._corrupt = self._file.inode if _is_corrupt(error) else None
                self._file = None
            raise
        if self._failing:
            log.info("answers are kept for feedback again")
            self._failing = False


@dataclass(frozen=True)
class _File:
    db: sqlite3.Connection
    inode: int  # tells whether another process has put a new file in its place


def _open(path: Path, corrupt: int | None) -> _File:
    """Opens the file, or begins a new one; one that is corrupt, or known to be by its inode, is moved aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # else two processes that find it corrupt would move each other's new one
        if corrupt is not None and path.exists() and path.stat().st_ino == corrupt:
            _move_aside(path)
        try:
            db = _connect(path)
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            _move_aside(path)
            db = _connect(path)
        return _File(db, path.stat().st_ino)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)  # None: transactions are ours to begin
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last rows, and never the file
        db.execute("PRAGMA foreign_keys = ON")
        db.executescript(_TABLES)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _is_corrupt(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the rest says where exactly
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _move_aside(path: Path) -> None:
    log.error("the feedback file is corrupt: it is moved aside, and a new one begun", extra={"file": path.name})
    for suffix in ("", "-wal", "-shm"):  # a process that still has the old file open shares its own two
        aside = Path(f"{path}.corrupt{suffix}")
        aside.unlink(missing_ok=True)
        if (part := Path(f"{path}{suffix}")).exists():
            part.replace(aside)


router = APIRouter(tags=["predictions"], dependencies=[Depends(auth.require("predict"))])


@router.post(
    "/feedback",
    responses=problems.documented(400, 401, 403, 404, 408, 413, 422, 429, 500, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": Label.model_json_schema()}}}
    },
)
async def confirm(request: Request) -> Confirmed:
    """Keeps a confirmed label for a prediction, by the prediction's request id. The last one counts."""
    service = request.app.state.service
    # Not a parameter of the function: the framework would read a body of any size.
    async with upload.body(request, service.buffered, MAX_BODY_BYTES, service.settings.read_seconds) as content:
        label = _label(content)
    classes = [each.key for each in service.models.champion.contract.classes]
    if label.class_ not in classes:
        detail = f"class: must be one of {', '.join(classes)}."
        raise problems.ProblemError(422, "unknown-class", "No class of this model", detail)
    feedback: Feedback = service.feedback
    try:
        return await feedback.confirm(label.request_id, label.class_)
    except KeyError as error:
        detail = "No prediction of this request id is known. They are remembered for some time only."
        raise problems.ProblemError(404, "unknown-prediction", "No such prediction", detail) from error
    except (sqlite3.Error, OSError) as error:
        detail = "Feedback cannot be kept now. Try again later."
        title = "Feedback is unavailable"
        raise problems.ProblemError(503, "feedback-unavailable", title, detail, retry_after=60) from error


def _label(content: bytes) -> Label:
    try:
        return Label.model_validate_json(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()]
        raise problems.ProblemError(422, "broken-label", "Not a confirmed label", "; ".join(faults) + ".") from error
