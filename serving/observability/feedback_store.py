"""The SQLite file that remembers each answer's class, and what people confirmed about it.

Kept of an answer are its request id, class, model version, that version's classes, time, and the name of the key that
asked: no image, and nothing else of the client. Of its labels the first and each change, with the key's name and time.
"""

import asyncio
import json
import logging
import queue
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from serving.metrics import Metrics
from serving.observability import feedback_file
from serving.periodic import Periodic
from serving.problems import ProblemError
from serving.request.auth import Key

BATCH_SECONDS = 0.2  # answers of this time are written together
MOST_WAITING = 10_000  # answers in memory; a disk that is slower than this loses some
CONFIRM_SECONDS = 10.0
PRUNE_SECONDS = 3600.0
MOST_CHANGES = 20  # of one answer's label, so that nobody fills the disk
JUMP_SECONDS = 3600.0  # by which the clock may differ from the time that has passed

# Few statements for all: SQLite releases the interpreter's lock for each statement, and so switches threads.
_KEEP = (
    "INSERT OR IGNORE INTO label_sets (classes) SELECT DISTINCT value ->> 4 FROM json_each(?)",
    """
INSERT OR IGNORE INTO predictions (request_id, class, version, at, label_set, asked_by)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3,
    (SELECT id FROM label_sets WHERE classes = value ->> 4), value ->> 5 FROM json_each(?)
""",
)
_ANSWER = """
SELECT class, version, asked_by, classes FROM predictions LEFT JOIN label_sets ON id = label_set WHERE request_id = ?
"""
_COUNTS = """
SELECT confirmed, confirmed = class, count(*) FROM labels JOIN predictions USING (request_id)
WHERE id IN (SELECT max(id) FROM labels GROUP BY request_id) GROUP BY 1, 2
"""
# What a person confirmed is never deleted by age: a clock that is ahead would take it all.
_DELETE = "DELETE FROM predictions WHERE at < ? AND request_id NOT IN (SELECT request_id FROM labels)"
log = logging.getLogger(__name__)


class Confirmed(BaseModel):
    """A label that was kept, beside the answer that it is about."""

    request_id: str
    predicted: str = Field(description="the class that was answered")
    confirmed: str = Field(description="the class that was confirmed")
    agrees: bool
    version: str | None = Field(description="of the model that answered; null for a file that was named directly")


_Row = tuple[str, str, str | None, int, str, str | None]  # request id, class, version, time, its classes, who asked


@dataclass(frozen=True)
class _Question:
    request_id: str
    class_key: str
    key: Key | None
    served: str
    future: Future[Confirmed] = field(default_factory=Future)


class Feedback:
    """Remembers answers for `days`, and those that people confirmed for good.

    One thread owns the file, and nobody else waits for it: where it cannot be written (full, locked, not allowed),
    predictions go on, answers are dropped and counted in `dropped`, and the log says so once, and once more when it
    works again. A file that is corrupt is moved aside to `….corrupt` (in place of an earlier one), logged as an
    error, and a new one begun: a server that refused to serve would cost more than the counts.
    """

    def __init__(self, path: Path, days: int, metrics: Metrics) -> None:
        self._path = path
        self._days = days
        self._counts, self._given, self._dropped = metrics.feedback, metrics.feedback_labels, metrics.feedback_dropped
        self._shown: set[tuple[str, bool]] = set()
        self._queue: queue.SimpleQueue[_Row | _Question] = queue.SimpleQueue()
        self._closed = False
        self._failing = False
        self._jumped = False
        self._behind = _behind()
        self._prune_at = time.monotonic()
        self._db: sqlite3.Connection | None = None
        self.periodic = Periodic("feedback", BATCH_SECONDS, self._turn)
        self.periodic.start()

    def record(
        self, request_id: str, class_key: str, version: str | None, classes: Sequence[str], by: str | None
    ) -> None:
        """Remembers an answer, its version's classes, and whose key asked. It is written a moment later."""
        if self._closed or self._queue.qsize() >= MOST_WAITING:
            self._dropped.inc()
        else:
            self._queue.put((request_id, class_key, version, int(time.time()), " ".join(classes), by))

    async def confirm(self, request_id: str, class_key: str, key: Key | None, served: Sequence[str]) -> Confirmed:
        """Keeps a confirmed label; the last one counts.

        Args:
            request_id: of the answer.
            class_key: the class that was confirmed.
            key: whose word it is; None where no keys are in use.
            served: the classes of the present model, for answers from before their own were kept.

        Raises:
            ProblemError: 404, 403, 422 or 409: no such answer, not this key's to confirm, no such class, changed often.
            sqlite3.Error, OSError: it cannot be kept now.
        """
        if self._closed:
            raise OSError("the server is stopping")
        question = _Question(request_id, class_key, key, " ".join(served))
        self._queue.put(question)  # behind the answers that wait, so that they are written first
        self.periodic.wake()
        return await asyncio.wait_for(asyncio.wrap_future(question.future), CONFIRM_SECONDS)

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
                for statement in _KEEP:
                    db.execute(statement, [json.dumps(rows)])
        except (sqlite3.Error, OSError):
            self._dropped.inc(len(rows))

    def _settle(self, question: _Question) -> None:
        try:
            with self._transaction() as db:
                confirmed, kind = _confirm(db, question)
                self._show(db)
        except (sqlite3.Error, OSError, ProblemError) as error:
            question.future.set_exception(error)
        else:
            self._given.labels(kind).inc()
            question.future.set_result(confirmed)

    def _prune(self) -> None:
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        too_old = int(time.time()) - self._days * 24 * 3600
        with suppress(sqlite3.Error, OSError), self._transaction() as db:
            (newest,) = db.execute("SELECT max(at) FROM predictions").fetchone()
            jump, self._behind = _behind() - self._behind, _behind()
            if abs(jump) > JUMP_SECONDS:
                self._told("the clock has jumped by %.1f hours", jump / 3600)
            elif newest is not None and newest < too_old:
                self._told("no answer is younger than feedback_days: is the clock right?")
            elif newest is not None and newest > time.time() + JUMP_SECONDS:
                self._told("answers are from the future: is the clock right?")
            if not self._jumped:
                db.execute(_DELETE, (too_old,))
            self._show(db)

    def _told(self, what: str, *numbers: float) -> None:
        if not self._jumped:
            log.warning(what + "; no answer is deleted until a restart", *numbers)
        self._jumped = True

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
                self._db = feedback_file.opened(self._path)
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
                if feedback_file.is_corrupt(error):
                    feedback_file.move_aside(self._path)
            raise
        if self._failing:
            log.info("answers are kept for feedback again")
            self._failing = False


def _confirm(db: sqlite3.Connection, asked: _Question) -> tuple[Confirmed, Literal["first", "changed", "repeated"]]:
    """Keeps the label, if that may be, and says whether it is the first, another than before, or the same again."""
    row = db.execute(_ANSWER, (asked.request_id,)).fetchone()
    if row is None:
        detail = "No prediction of this request id is known. They are remembered for some time only."
        raise ProblemError(404, "unknown-prediction", "No such prediction", detail)
    predicted, version, asked_by, classes = row
    if asked.key and not asked.key.may("reviewer") and asked.key.name != asked_by:
        detail = "Only the key that asked for this prediction may confirm its class, or a key of role reviewer."
        raise ProblemError(403, "not-yours", "Not allowed", detail)
    if asked.class_key not in (keys := (classes or asked.served).split()):
        detail = f"class: must be one of {', '.join(keys)}."
        raise ProblemError(422, "unknown-class", "No class of the model that answered", detail)
    labels = db.execute("SELECT confirmed FROM labels WHERE request_id = ? ORDER BY id", (asked.request_id,)).fetchall()
    kind: Literal["first", "changed", "repeated"] = "first"
    if labels:
        kind = "repeated" if labels[-1] == (asked.class_key,) else "changed"
    if len(labels) > MOST_CHANGES and kind == "changed":
        detail = f"The class of this prediction was changed {MOST_CHANGES} times; the last one stands."
        raise ProblemError(409, "changed-too-often", "Changed too often", detail)
    if kind != "repeated":
        db.execute(
            "INSERT INTO labels (request_id, confirmed, confirmed_by, at) VALUES (?, ?, ?, ?)",
            (asked.request_id, asked.class_key, asked.key and asked.key.name, int(time.time())),
        )
    return Confirmed(
        request_id=asked.request_id,
        predicted=predicted,
        confirmed=asked.class_key,
        agrees=asked.class_key == predicted,
        version=version,
    ), kind


def _behind() -> float:
    """Seconds from the machine's start to 1970, by its clock: it changes where the clock is set."""
    return time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
