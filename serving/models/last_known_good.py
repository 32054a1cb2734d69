"""What a server notes on disk for its next start: which version served last, and which before it.

It lies in the registered model's folder on this machine, CACHE_DIR/NAME, beside a folder for each version still of use.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field

from leukdetect.registry import DOWNLOAD, Located, came, discard, is_alias, parse
from serving.settings import Settings

LAST_KNOWN_GOOD = "last_known_good.json"
MOST_BYTES = 100_000  # of the note; one has a few hundred
STALE_SECONDS = 3600  # an older download was interrupted by the end of its process

log = logging.getLogger(__name__)


class _Entry(BaseModel):
    version: str
    folder: str = Field(pattern=r"^[\w-][\w.-]*$")  # one of CACHE_DIR/NAME, and none elsewhere


class _Note(_Entry):
    model: str
    before: _Entry | None = None


def remember(settings: Settings, located: Located) -> None:
    """Notes that this version was loaded and passed every check, for a start while the registry is down.

    The version noted so far becomes the one before, which stays on disk for a rollback. A disk that is full or may not
    be written to is logged: it serves all the same.
    """
    if located.version is None:
        return
    before, _ = noted(settings)
    if before and before.path == located.path:
        return
    former = _Entry(version=str(before.version), folder=before.path.name) if before else None
    note = _Note(version=located.version, folder=located.path.name, model=settings.model, before=former)
    path = _folder(settings) / LAST_KNOWN_GOOD
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(note.model_dump_json(indent=2) + "\n")
        temporary.replace(path)  # a reader sees the old note or the new one, never half of it
    except OSError as error:
        log.error("the model could not be noted for the next start", extra={"error": str(error)})
        with suppress(OSError):
            temporary.unlink()


def noted(settings: Settings) -> tuple[Located | None, Located | None]:
    """The version that `remember` noted last for this alias, and the one before it; None where it is not on disk."""
    if not is_alias(settings.model):
        return None, None
    folder, alias = _folder(settings), parse(settings.model)[1]
    try:
        with (folder / LAST_KNOWN_GOOD).open("rb") as file:
            note = _Note.model_validate_json(file.read(MOST_BYTES))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:  # a disk's damage, or somebody's editing
        brief = str(error).partition("\n")[0]
        log.warning("what served last cannot be read, as if it were not there", extra={"error": brief})
        return None, None

    def located(entry: _Entry | None) -> Located | None:
        if entry is None or note.model != settings.model or not (folder / entry.folder).is_dir():
            return None
        return Located(folder / entry.folder, entry.version, alias, came(folder / entry.folder))

    return located(note), located(note.before)


def forget(settings: Settings, keep: Iterable[Located]) -> None:
    """Removes the downloaded versions that are neither in `keep` nor noted, and what broken downloads have left."""
    kept = {located.path for located in (*keep, *noted(settings)) if located}
    for folder in _folder(settings).iterdir():
        if not folder.is_dir() or folder in kept:
            continue
        with suppress(FileNotFoundError):  # another server has removed it
            if not folder.name.startswith(DOWNLOAD):
                discard(folder)
            elif time.time() - folder.stat().st_mtime > STALE_SECONDS:  # a younger one may be under way
                shutil.rmtree(folder, ignore_errors=True)


def _folder(settings: Settings) -> Path:
    return settings.cache_dir / parse(settings.model)[0]
