"""What a server's processes share on disk: which versions served, and what was ordered. It outlives them.

In a registered model's folder on this machine, CACHE_DIR/NAME, beside a folder for each version that is still of use.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from leukdetect.registry import DOWNLOAD, Located, Registered, is_alias, parse
from serving.settings import Settings

LAST_KNOWN_GOOD, ORDERS = "last_known_good.json", "orders.json"
STALE_SECONDS = 3600  # a download that is older was interrupted by the end of its process

Stamp = tuple[int, int, int]  # tells one writing of a file from another

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hold:
    """An order to go back: while the alias names `left`, `instead` serves."""

    left: Located
    instead: Located

    def holds(self, registered: Registered) -> bool:
        """Whether this is the version that was left."""
        return self.left.path.name == registered.folder

    @property
    def note(self) -> str:
        """For everyone."""
        return f"Version {self.left.version} was rolled back from; version {self.instead.version} serves."


def remember(settings: Settings, located: Located) -> None:
    """Notes that this version was loaded and passed every check, for a start while the registry is down.

    The one noted before becomes the one to go back to, unless it was just rolled back from.
    """
    if located.version is None:
        return
    before = last_known_good(settings)
    if before and before.path == located.path:
        return
    held = hold(settings)
    if held and before and held.left.path == before.path:
        before = None
    note = {"model": settings.model, **_written(located), "before": _written(before) if before else None}
    _write(_folder(settings) / LAST_KNOWN_GOOD, note)


def last_known_good(settings: Settings) -> Located | None:
    """The version that `remember` noted for the same alias, if it is still there."""
    return _noted(settings, LAST_KNOWN_GOOD)


def one_before(settings: Settings) -> Located | None:
    """The version that served before the last known good, if it is still there."""
    return _noted(settings, LAST_KNOWN_GOOD, "before")


def hold(settings: Settings) -> Hold | None:
    """The last order to go back, unless it has been lifted or what it puts in place is gone."""
    left, instead = _noted(settings, ORDERS, "left", gone=True), _noted(settings, ORDERS, "instead")
    return Hold(left, instead) if left and instead else None


def order(settings: Settings, held: Hold | None) -> Stamp:
    """Tells every process of this server, and the next start, to obey this and to ask the registry at once.

    Raises:
        OSError: it cannot be written, so nobody else learns of it.
    """
    note = {
        "model": settings.model,
        "left": _written(held.left) if held else None,
        "instead": _written(held.instead) if held else None,
        "ordered": time.time_ns(),
    }
    return _write(_folder(settings) / ORDERS, note)


def ordered(settings: Settings) -> Stamp | None:
    """Changes with every order."""
    try:
        return _stamp((_folder(settings) / ORDERS).stat())
    except OSError:
        return None


def forget(settings: Settings, keep: Iterable[Located]) -> None:
    """Removes the downloaded versions that are neither in `keep` nor noted, and what is left of broken downloads."""
    held = hold(settings)
    noted = (last_known_good(settings), one_before(settings), held and held.instead)
    kept = {located.path for located in (*keep, *noted) if located}
    for folder in _folder(settings).iterdir():
        if not folder.is_dir() or folder in kept:
            continue
        if not folder.name.startswith(DOWNLOAD) or _age(folder) > STALE_SECONDS:  # a younger one may be under way
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Orders:
    """The last order as this process knows it, and the file through which it reaches the others."""

    settings: Settings
    hold: Hold | None = field(init=False)
    _seen: Stamp | None = None  # so that what was ordered while this process started is obeyed too

    def __post_init__(self) -> None:
        self.hold = hold(self.settings)

    def give(self, hold: Hold | None) -> None:
        """To this process and to all others."""
        self.hold = hold
        try:
            self._seen = order(self.settings, hold)
        except OSError as error:  # a full disk, say
            log.error("the order reaches no other worker and no later start", extra={"error": str(error)})

    def look(self) -> bool:
        """Whether another process gave one since the last look; takes it over."""
        seen = ordered(self.settings)
        if seen == self._seen:
            return False
        self._seen, self.hold = seen, hold(self.settings)
        return True


def _folder(settings: Settings) -> Path:
    return settings.cache_dir / parse(settings.model)[0]


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0


def _written(located: Located) -> dict[str, str | None]:
    return {"version": located.version, "folder": located.path.name}


def _noted(settings: Settings, name: str, key: str | None = None, gone: bool = False) -> Located | None:
    """A version in a note, or under a key of it, for the same alias. `gone`: its folder need not be there."""
    if not is_alias(settings.model):
        return None
    folder = _folder(settings)
    try:
        note = json.loads((folder / name).read_text())
        entry = note[key] if key else note
        located = Located(folder / entry["folder"], entry["version"], parse(settings.model)[1])
        of_this_alias = note["model"] == settings.model
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return located if of_this_alias and (gone or located.path.is_dir()) else None


def _write(path: Path, note: Mapping[str, object]) -> Stamp:
    """In one step, so that whoever reads it at this moment reads all of the old or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(note, indent=2) + "\n")
        stamp = _stamp(temporary.stat())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return stamp


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
