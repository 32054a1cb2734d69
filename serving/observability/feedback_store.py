"""The SQLite file that remembers each answer's class, and what people confirmed about it.

Kept of an answer are its request id, class, model version and time: no image, and nothing of the client.
"""

import asyncio
import json
import logging
import queue
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Counter, Gauge
from pydantic import BaseModel, Field

from serving.periodic import Periodic

BATCH_SECONDS = 0.2  # answers of this time are written together
MOST_WAITING = 10_000  # answers in memory; a disk that is slower than this loses some
BUSY_SECONDS = 2.0  # how long another process, a back-up say, may hold the file
CONFIRM_SECONDS = 10.0
PRUNE_SECONDS = 3600.0

_TABLES = """
CREATE TABLE IF NOT EXISTS predictions (
    request_id TEXT PRIMARY KEY, class TEXT NOT NULL, version TEXT, at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS predictions_at ON predictions (at);
CREATE TABLE IF NOT EXISTS feedback (
    request_id TEXT PRIMARY KEY REFERENCES predictions ON DELETE CASCADE, confirmed TEXT NOT NULL, at INTEGER NOT NULL
) WITHOUT ROWID;
"""
# One statement for all: SQLite releases the interpreter's lock for each statement, and so switches threads.
_KEEP = """
INSERT OR IGNORE INTO predictions SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)
"""
_COUNTS = """
SELECT confirmed, confirmed = class, count(*) FROM feedback JOIN predictions USING (request_id) GROUP BY 1, 2
"""
# What a person confirmed is never deleted by age: a clock that is ahead would take it all.
_DELETE = "DELETE FROM predictions WHERE at < ? AND request_id NOT IN (SELECT request_id FROM feedback)"
log = logging.getLogger(__name__)


class Confirmed(BaseModel):
    """A label that was kept, beside the answer that it is about."""

    request_id: str
    predicted: str = Field(description="the class that was answered")
    confirmed: str = Field(description="the class that was confirmed")
    agrees: bool
    version: str | None = Field(description="of the model that answered; null for a file that was named directly")


_Row = tuple[str, str, str | None, int]  # of an answer: request id, class, version, time


@dataclass(frozen=True)
class _Question:
    request_id: str
    class_key: str
    future: Future[Confirmed | None] = field(default_factory=Future)


class Feedback:
    """Remembers answers for `days`, and those that people confirmed for good.

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
        self._queue: queue.SimpleQueue[_Row | _Question] = queue.SimpleQueue()
        self._closed = False
        self._failing = False
        self._jumped = False
        self._prune_at = time.monotonic()
        self._db: sqlite3.Connection | None = None
        self.periodic = Periodic("feedback", BATCH_SECONDS, self._turn)
        self.periodic.start()

    def record(self, request_id: str, class_key: str, version: str | None) -> None:
        """Remembers an answer. Returns at once; it is written a moment later."""
        if self._closed or self._queue.qsize() >= MOST_WAITING:
            self._dropped.inc()
        else:
            self._queue.put((request_id, class_key, version, int(time.time())))

    async def confirm(self, request_id: str, class_key: str) -> Confirmed:
        """Keeps a confirmed label, in place of an earlier one for the same answer.

        Raises:
            KeyError: no answer of this id is known (any more).
            sqlite3.Error, OSError: it cannot be kept now.
        """
        if self._closed:
            raise OSError("the server is stopping")
        question = _Question(request_id, class_key)
        self._queue.put(question)  # behind the answers that wait, so that they are written first
        self.periodic.wake()
        confirmed = await asyncio.wait_for(asyncio.wrap_future(question.future), CONFIRM_SECONDS)
        if confirmed is None:
            raise KeyError(request_id)
        return confirmed

    def close(self) -> None:
        """Writes what waits, and ends."""
        self._closed = True
        if self.periodic.stop(CONFIRM_SECONDS):  # a disk that hangs must not keep the process from ending
            self._turn()
            if self._db:
                self._db.close()

    def _turn(self) -> None:
        items = [self._queue.get() for _ in range(self._queue.qsize())]
        self._write([item for item in items if isinstance(item, tuple)])
        for item in items:
            if isinstance(item, _Question) and item.future.set_running_or_notify_cancel():
                self._settle(item)
        if time.monotonic() >= self._prune_at:
            self._prune()

    def _write(self, rows: list[_Row]) -> None:
        if not rows:
            return
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
        row = db.execute("SELECT class, version FROM predictions WHERE request_id = ?", (request_id,)).fetchone()
        if row is None:
            return None
        predicted, version = row
        db.execute("INSERT OR REPLACE INTO feedback VALUES (?, ?, ?)", (request_id, class_key, int(time.time())))
        self._show(db)
        return Confirmed(
            request_id=request_id,
            predicted=predicted,
            confirmed=class_key,
            agrees=class_key == predicted,
            version=version,
        )

    def _prune(self) -> None:
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        too_old = int(time.time()) - self._days * 24 * 3600
        with suppress(sqlite3.Error, OSError), self._transaction() as db:
            (newest,) = db.execute("SELECT max(at) FROM predictions").fetchone()
            if not self._jumped and newest is not None and newest < too_old:
                self._jumped = True
                log.warning(
                    "no answer is younger than feedback_days: is the clock right? None is deleted until a restart"
                )
            if not self._jumped:
                db.execute(_DELETE, (too_old,))
            self._show(db)

    def _show(self, db: sqlite3.Connection) -> None:
        """Sets the gauge; a count that was shown and is no more becomes 0."""
        counts = dict.fromkeys(self._shown, 0)
        counts |= {(confirmed, bool(agrees)): count for confirmed, agrees, count in db.execute(_COUNTS)}
        for (confirmed, agrees), count in counts.items():
            self._counts.labels(confirmed, str(agrees).lower()).set(count)
        self._shown.update(counts)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The database, until the block ends; after an error the next block begins with opening it again."""
        try:
            if self._db is None:
                self._db = _open(self._path)
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
        except (sqlite3.Error, OSError) as error:
            if not self._failing:
                log.error("answers cannot be kept for feedback", extra={"error": str(error)})
                self._failing = True
            if self._db:
                self._db.close()
                self._db = None
                if _is_corrupt(error):
                    _move_aside(self._path)
            raise
        if self._failing:
            log.info("answers are kept for feedback again")
            self._failing = False


def _open(path: Path) -> sqlite3.Connection:
    """Opens the file, or begins a new one; one that is corrupt is moved aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not _is_corrupt(error):
            raise
        _move_aside(path)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions are ours to begin. The thread that closes it is not the one that opened it.
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
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
