"""The registry: which version an alias names, and its files on this machine, each version in a folder of its own."""

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from leukdetect.contract import FILES, SHA256_TAGS
from serving.settings import Settings

# A server must find out soon that its registry is down; MLflow's own defaults take minutes.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}.items():
    os.environ.setdefault(_name, _value)


DOWNLOAD = ".download-"  # what is under way is called


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
        raise RegistryError(f"{settings.model} could not be had from {shown(settings)}: {_safe(error)}") from error
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
                f"version {registered.version} could not be downloaded from {shown(settings)}: {_safe(error)}"
            ) from error
    return Located(folder, registered.version, registered.alias)


def discard(located: Located) -> None:
    """Removes a version that is of no use, so that it would be downloaded anew."""
    shutil.rmtree(located.path, ignore_errors=True)


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


def shown(settings: Settings) -> str:
    return _safe(settings.tracking_uri)


def _safe(text: object) -> str:
    """No password in a log."""
    return re.sub(r"//[^/@\s]*@", "//…@", str(text))
