"""The registry: which version an alias names, and its files on this machine, each version in a folder of its own."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leukdetect.child import Child, EndedError
from leukdetect.contract import FILES, SHA256_TAGS
from leukdetect.exchange import safe

ASK_SECONDS = 30  # for an answer of the registry, in all
DOWNLOAD_SECONDS = 400  # for a version; one of 130 MB at 3 Mbit/s
DOWNLOAD_BYTES = 2_000_000_000
DOWNLOAD = ".download-"  # prefix of the folder of an unfinished download, and of one that is being removed
CAME = "came.json"  # in a version's folder: the hashes of its files when they came
NOTE_BYTES = 10_000  # of that

_mlflow = Child("leukdetect.exchange")
log = logging.getLogger(__name__)


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
    sha256: Mapping[str, str] = field(default_factory=dict)  # by precision, of a version: what its files have to be


@dataclass(frozen=True)
class Registry:
    """An MLflow registry, and the folder in which the versions that came from it are kept.

    Each exchange with it has a budget of seconds and bytes in all. `unhashed`: whether to take versions whose tags
    tell no hashes.
    """

    tracking_uri: str
    cache_dir: Path
    unhashed: bool = False

    def ask(self, name: str, alias: str) -> Located | None:
        """The version that the alias names now, with what its tags say of hashes; None where there is no such alias.

        Raises RegistryError: the registry could not be asked.
        """
        self.refuse_missing_database()
        try:
            found = self._exchange(ASK_SECONDS, name=name, alias=alias)["found"]
        except RegistryError as error:
            raise RegistryError(f"models:/{name}@{alias} could not be had from {self.shown}: {error}") from error
        if found is None:
            return None
        hashes = {precision: found["tags"][tag] for precision, tag in SHA256_TAGS.items() if tag in found["tags"]}
        # Versions count from 1 again in a new registry, so the time of creation is part of the folder's name.
        folder = self.cache_dir / name / f"{found['version']}-{found['created']}"
        return Located(folder, found["version"], alias, hashes)

    def fetch(self, asked: Located) -> Located:
        """Downloads the version unless it is here already, and checks its files against the registry's hashes.

        Raises:
            DamagedError: it is not what was registered, or nobody can tell.
            RegistryError: it could not be downloaded. Of neither anything stays.
        """
        if not self.unhashed and (missing := FILES.keys() - asked.sha256.keys()):
            raise DamagedError(
                f"version {asked.version} has no hash of {' and '.join(FILES[each] for each in sorted(missing))} "
                "in its tags, so nobody can tell whether its files are those that were registered. Register it with "
                "`python -m pipeline.register`, or take such versions with LEUKDETECT_UNHASHED=true"
            )
        if not _intact(located := _whole(asked)):
            if located.path.is_dir():
                log.warning("version %s is damaged on this machine; it is downloaded anew", asked.version)
            try:
                self._keep(f"models:/{asked.path.parent.name}/{asked.version}/artifacts", asked.path, asked.sha256)
            except DamagedError:
                raise
            except (RegistryError, OSError) as error:
                moved = " (was the project moved? `python -m pipeline.register` there corrects MLflow's paths)"
                raise RegistryError(
                    f"version {asked.version} could not be downloaded from {self.shown}: {safe(error)}"
                    + (moved if self.tracking_uri.startswith("sqlite:") else "")
                ) from error
            return _whole(asked)
        if not came(located.path):  # it is from before there was that note
            with suppress(OSError):
                (located.path / CAME).write_text(json.dumps(dict(located.sha256)))
        return located

    def locate(self, model: str) -> Located:
        """What `model` names: an .onnx file, or a registry alias, whose version is downloaded once and kept.

        Raises:
            RegistryError: no such file, alias or registry, or a download that is damaged; the message says what to do.
        """
        if not is_alias(model):
            path = Path(model)
            if not path.is_file():
                raise RegistryError(f"{path} is no file; name an .onnx file or a registry alias (models:/NAME@ALIAS)")
            return Located(path)
        if (asked := self.ask(*parse(model))) is None:
            raise RegistryError(f"{model}: the registry at {self.shown} has no such alias")
        return self.fetch(asked)

    def download(self, artifact_uri: str, folder: Path) -> Path:
        """Downloads an artifact into a folder. Raises RegistryError if that fails or is over its budget."""
        question = {"artifact": artifact_uri, "folder": str(folder), "most": DOWNLOAD_BYTES}
        return Path(self._exchange(DOWNLOAD_SECONDS, **question)["path"])

    def _exchange(self, seconds: float, **question: Any) -> dict[str, Any]:
        try:
            answer = _mlflow.ask(question | {"uri": self.tracking_uri, "environment": dict(os.environ)}, seconds)
        except EndedError as error:
            raise RegistryError(f"the exchange {error}") from error
        if "error" in answer:
            if answer.get("goes_on"):
                _mlflow.close()
            raise RegistryError(answer["error"])
        return answer

    @property
    def shown(self) -> str:
        """Its address without a password."""
        return safe(self.tracking_uri)

    def refuse_missing_database(self) -> None:
        """Raises RegistryError where the registry is a file of this machine, and there is none."""
        path = Path(self.tracking_uri.removeprefix("sqlite:///"))
        if self.tracking_uri.startswith("sqlite:///") and not path.is_file():  # MLflow would create an empty one
            raise RegistryError(
                f"there is no registry at {path}; run `dvc repro`, set MLFLOW_TRACKING_URI, "
                "or serve a file with --model"
            )

    def _keep(self, artifact_uri: str, folder: Path, sha256: Mapping[str, str]) -> None:
        """Downloads to a temporary name and renames, so that an existing folder is always complete."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DOWNLOAD, ignore_cleanup_errors=True) as temporary:
            got = self.download(artifact_uri, Path(temporary))
            hashes = {precision: _sha256(got / name) for precision, name in FILES.items()}
            for precision, expected in sha256.items():
                if hashes[precision] != expected:
                    raise DamagedError(f"{FILES[precision]} of {artifact_uri} is not the file that was registered")
            (got / CAME).write_text(json.dumps(hashes))
            discard(folder)  # if it is there, it is damaged
            try:
                got.replace(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise


def is_alias(model: str) -> bool:
    """Whether `model` names a registry alias and not a file."""
    return model.startswith("models:/")


def parse(model: str) -> tuple[str, str]:
    """The name and the alias in models:/NAME@ALIAS."""
    match = re.fullmatch(r"models:/(\w[\w.-]*)@(\w[\w.-]*)", model)
    if match is None:
        raise RegistryError(f"{model} names no registered model; write models:/NAME@ALIAS")
    return match[1], match[2]


def give_up() -> None:
    """Ends an exchange that is under way, which then raises RegistryError in its own thread."""
    _mlflow.close()


def came(folder: Path) -> dict[str, str]:
    """The hashes that a version's files had when they came, by precision; none where that cannot be read."""
    try:
        with (folder / CAME).open("rb") as file:
            found = json.loads(file.read(NOTE_BYTES))
        return {precision: str(found[precision]) for precision in FILES if found.get(precision)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def discard(folder: Path) -> None:
    """Removes a version's files, so that the next fetch downloads them again; not while somebody loads them."""
    with suppress(RegistryError, OSError), holding(folder, alone=True):
        # It goes as a whole, so that nobody finds half of it.
        gone = Path(tempfile.mkdtemp(dir=folder.parent, prefix=DOWNLOAD))
        with suppress(OSError):
            folder.replace(gone / folder.name)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def holding(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Keeps every server from removing a version's folder for the block, or whoever is not `alone` from loading it.

    Raises:
        RegistryError: it is gone already.
        BlockingIOError: somebody holds it, and so nobody can be alone.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as error:
        raise RegistryError("another server removed it meanwhile") from error
    except ImportError:  # Windows
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            raise
        except OSError:  # some network drives have no locks
            pass
        if not folder.is_dir():
            raise RegistryError("another server removed it meanwhile")
        yield
    finally:
        os.close(descriptor)


def _whole(asked: Located) -> Located:
    """With the hashes, too, that its files had when they came."""
    return replace(asked, sha256=came(asked.path) | dict(asked.sha256))


def _intact(located: Located) -> bool:
    hashes = located.sha256.items()
    return bool(hashes) and all(_sha256(located.path / FILES[precision]) == each for precision, each in hashes)


def _sha256(path: Path) -> str | None:
    """Of a file that is complete even after a power failure; None where there is none, or none that can be read."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
