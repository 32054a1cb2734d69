"""The feedback file itself: its tables, the steps from an older version, and what happens to a corrupt one."""

import logging
import sqlite3
from pathlib import Path

BUSY_SECONDS = 2.0  # how long another process, a back-up say, may hold the file

# The steps from one version of the file (PRAGMA user_version) to the next, each done in one transaction or not at all.
_STEPS = (
    """
CREATE TABLE IF NOT EXISTS predictions (
    request_id TEXT PRIMARY KEY, class TEXT NOT NULL, version TEXT, at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS predictions_at ON predictions (at);
CREATE TABLE IF NOT EXISTS feedback (
    request_id TEXT PRIMARY KEY REFERENCES predictions ON DELETE CASCADE, confirmed TEXT NOT NULL, at INTEGER NOT NULL
) WITHOUT ROWID;
""",
    """
CREATE TABLE label_sets (id INTEGER PRIMARY KEY, classes TEXT NOT NULL UNIQUE);
ALTER TABLE predictions ADD COLUMN label_set INTEGER REFERENCES label_sets;
ALTER TABLE predictions ADD COLUMN asked_by TEXT;
CREATE TABLE labels (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL REFERENCES predictions ON DELETE CASCADE,
    confirmed TEXT NOT NULL, confirmed_by TEXT, at INTEGER NOT NULL
);
CREATE INDEX labels_request ON labels (request_id, id);
INSERT INTO labels (request_id, confirmed, at) SELECT request_id, confirmed, at FROM feedback ORDER BY at;
DROP TABLE feedback;
""",
)
log = logging.getLogger(__name__)


def opened(path: Path) -> sqlite3.Connection:
    """Opens the file, or begins a new one; one that is corrupt is moved aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not is_corrupt(error):
            raise
        move_aside(path)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions are ours to begin. The thread that closes it is not the one that opened it.
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last rows, and never the file
        db.execute("PRAGMA foreign_keys = ON")
        (done,) = db.execute("PRAGMA user_version").fetchone()
        for number, step in enumerate(_STEPS[done:], done + 1):
            db.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT;")
    except sqlite3.Error:
        db.close()
        raise
    return db


def is_corrupt(error: Exception) -> bool:
    """Whether the error says that the file is damaged, or no database."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the rest says where exactly
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def move_aside(path: Path) -> None:
    """Renames it, in place of an earlier one, and says so."""
    log.error("the feedback file is corrupt: it is moved aside, and a new one begun", extra={"file": path.name})
    for suffix in ("", "-wal", "-shm"):  # a process that still has the old file open shares its own two
        aside = Path(f"{path}.corrupt{suffix}")
        aside.unlink(missing_ok=True)
        if (part := Path(f"{path}{suffix}")).exists():
            part.replace(aside)
