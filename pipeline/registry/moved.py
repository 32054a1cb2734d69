"""A project that was moved or copied: the embedded MLflow names files by absolute paths, which are corrected."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.stage import Problem

SQLITE = "sqlite:///"
ARTIFACTS = Path("mlartifacts")  # of the embedded MLflow, beside its database; a server keeps its own
BUSY_SECONDS = 30.0  # how long another process may hold the database


def artifacts(uri: str) -> Path:
    """Where the embedded MLflow of this address keeps its files."""
    return _database(uri).parent / ARTIFACTS


def settle(uri: str) -> None:
    """Makes all that the embedded MLflow wrote down name the files beside its database.

    Raises Problem if they were left behind, or the database cannot be written.
    """
    if not uri.startswith(SQLITE) or not _database(uri).is_file():
        return
    home = artifacts(uri)
    with closing(sqlite3.connect(_database(uri), timeout=BUSY_SECONDS, isolation_level=None)) as db:
        try:
            found = db.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.DatabaseError:
            return  # no database, or an empty one: MLflow says so
        ours = [name for (name,) in found if name and name.startswith("file:") and name.endswith(f"/{ARTIFACTS}")]
        for location in ours:
            former = Path(unquote(urlsplit(location).path))
            if location == home.as_uri():
                continue
            if former.is_dir() and not home.is_dir():
                raise Problem(
                    f"{_database(uri)} keeps its files in {former}, and there is no {home}. If this project was moved "
                    f"or copied, move or copy that folder here too; then run this again."
                )
            try:
                _rename(db, location, home.as_uri())
                _rename(db, str(former), str(home))
            except sqlite3.Error as error:
                raise Problem(
                    f"{_database(uri)} was moved here from {former.parent}, and cannot be corrected ({error}). "
                    "Make it writable, let nobody else use it, and run this again."
                ) from error
            print(f"MLflow's files are those in {home} now: this project was moved or copied from {former.parent}")


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve()


def _rename(db: sqlite3.Connection, former: str, now: str) -> None:
    """Replaces a folder's name at the beginning of whatever text of the database begins with it: all, or nothing."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for table in [name for (name,) in tables if not name.startswith("sqlite_")]:
            columns = db.execute(f'PRAGMA table_info("{table}")').fetchall()
            for column in [name for _, name, kind, *_ in columns if "CHAR" in kind.upper() or "TEXT" in kind.upper()]:
                db.execute(
                    f'UPDATE "{table}" SET "{column}" = ?2 || substr("{column}", length(?1) + 1) '  # noqa: S608  (names from the database itself)
                    f'WHERE "{column}" = ?1 OR substr("{column}", 1, length(?1) + 1) = ?1 || \'/\'',
                    (former, now),
                )
