"""Where the model file comes from: a path, the registry, or what the registry gave last time.

A registered model's folder on this machine, CACHE_DIR/NAME, holds a folder for each version that is still of use, and
two notes which the server's processes share and which outlive them: what served last, and what was ordered last.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.contract import FILES, SHA256_TAGS
from serving.settings import Settings

# A server must find out soon that its registry is down; MLflow's own defaults take minutes.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}.items():
    os.environ.setdefault(_name, _value)


LAST_KNOWN_GOOD, ORDERS, DOWNLOAD = "last_known_good.json", "orders.json", ".download-"
STALE_SECONDS = 3600  # a download that is older was interrupted by the end of its process


Stamp = tuple[int, int, int]  # tells one writing of a file from another


class RegistryError(Exception):
    """The registry could not be asked, or does not hold what was asked for."""


class DamagedError(RegistryError):
    """What was downloaded is not what was registered."""


@dataclass(frozen=True)
class Located:
    """A model on this machine, and what the registry calls it."""

    path: Path  # an .onnx file, or the folder of a registered version, with the files that FILES names
    version: str | None = None  # None: a file that was named directly
    alias: str | None = None


@dataclass(frozen=True)
class Registered:
    """A version that an alias names, as the registry tells of it."""

    name: str
    version: str
    alias: str
    created: int  # milliseconds since 1970
    sha256: dict[str, str]  # by precision; what the version's tags say

    @property
    def folder(self) -> str:
        """What its folder on this machine is called."""
        # A registry that is made anew counts from 1 again: the time of creation tells its versions apart.
        return f"{self.version}-{self.created}"


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


def resolve(settings: Settings) -> Located:
    """Finds what `settings.model` names; a registered version is downloaded once and kept.

    A version that was rolled back from stays out: what was put in its place is found instead.

    Raises:
        RegistryError: no such file, alias or registry, or a download that is damaged; the message says what to do.
    """
    if not is_registered(settings):
        path = Path(settings.model)
        if not path.is_file():
            raise RegistryError(f"{path} is no file; name an .onnx file or a registry alias (models:/NAME@ALIAS)")
        return Located(path)
    registered = ask(settings)
    if registered is None:
        raise RegistryError(f"{settings.model}: the registry at {_shown(settings)} has no such alias")
    held = hold(settings)
    return held.instead if held and held.holds(registered) else fetch(settings, registered)


def is_registered(settings: Settings) -> bool:
    """Whether an alias is served, which can move, and not a file."""
    return settings.model.startswith("models:/")


def ask(settings: Settings, alias: str | None = None) -> Registered | None:
    """The version that the alias (else the one in `settings.model`) names now; None where there is no such alias.

    Raises:
        RegistryError: the registry could not be asked.
    """
    name, own = parse(settings.model)
    alias = alias or own
    _refuse_missing_database(settings.tracking_uri)
    try:
        import mlflow  # a second to import: not when a file is served
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(settings.tracking_uri)
        try:
            found = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    except Exception as error:  # database, HTTP and MLflow errors of every kind mean one thing here
        raise RegistryError(f"{settings.model} could not be had from {_shown(settings)}: {_safe(error)}") from error
    hashes = {precision: found.tags[tag] for precision, tag in SHA256_TAGS.items() if tag in found.tags}
    return Registered(name, str(found.version), alias, found.creation_timestamp, hashes)


def fetch(settings: Settings, registered: Registered) -> Located:
    """Downloads the version unless it is here already, and checks its files against the registry's hashes.

    Raises:
        DamagedError: it is not what was registered.
        RegistryError: it could not be downloaded. Of neither anything stays.
    """
    folder = settings.cache_dir / registered.name / registered.folder
    if not folder.is_dir():
        try:
            _download(f"models:/{registered.name}/{registered.version}/artifacts", folder, registered.sha256)
        except RegistryError:
            raise
        except Exception as error:  # as in ask, and what a disk can raise
            raise RegistryError(
                f"version {registered.version} could not be downloaded from {_shown(settings)}: {_safe(error)}"
            ) from error
    return Located(folder, registered.version, registered.alias)


def discard(located: Located) -> None:
    """Removes a version that is of no use, so that it would be downloaded anew."""
    shutil.rmtree(located.path, ignore_errors=True)


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


def parse(model: str) -> tuple[str, str]:
    """The name and the alias in models:/NAME@ALIAS."""
    match = re.fullmatch(r"models:/(\w[\w.-]*)@(\w[\w.-]*)", model)
    if match is None:
        raise RegistryError(f"{model} names no registered model; write models:/NAME@ALIAS")
    return match[1], match[2]


def _refuse_missing_database(tracking_uri: str) -> None:
    path = Path(tracking_uri.removeprefix("sqlite:///"))
    if tracking_uri.startswith("sqlite:///") and not path.is_file():  # else MLflow would make an empty one
        raise RegistryError(
            f"there is no registry at {path}; run `dvc repro`, set MLFLOW_TRACKING_URI, or serve a file with --model"
        )


def _download(artifact_uri: str, folder: Path, sha256: dict[str, str]) -> None:
    """Downloads under a temporary name, so that a folder that is there is whole."""
    import mlflow

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DOWNLOAD, ignore_cleanup_errors=True) as temporary:
        got = Path(mlflow.artifacts.download_artifacts(artifact_uri=artifact_uri, dst_path=temporary))
        for precision, expected in sha256.items():
            try:
                with (got / FILES[precision]).open("rb") as file:
                    actual = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())  # the folder's name promises whole files, over a power failure too
            except FileNotFoundError:
                actual = None
            if actual != expected:
                raise DamagedError(f"{FILES[precision]} of {artifact_uri} is not the file that was registered")
        try:
            got.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another worker was faster
                raise


def _shown(settings: Settings) -> str:
    return _safe(settings.tracking_uri)


def _safe(text: object) -> str:
    """No password in a log."""
    return re.sub(r"//[^/@\s]*@", "//…@", str(text))


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
    if not is_registered(settings):
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
