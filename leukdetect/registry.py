"""The registry: which version an alias names, and its files on this machine, each version in a folder of its own."""

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukdetect.contract import FILES, SHA256_TAGS

# With MLflow's own it takes minutes to notice that a registry is down.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
DOWNLOAD = ".download-"  # prefix of the folder of an unfinished download


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
        """Name of its folder on this machine."""
        # Versions count from 1 again in a new registry, so the time of creation is part of the name.
        return f"{self.version}-{self.created}"


@dataclass(frozen=True)
class Registry:
    """An MLflow registry, and the folder in which the versions that came from it are kept."""

    tracking_uri: str
    cache_dir: Path

    def ask(self, name: str, alias: str) -> Registered | None:
        """The version that the alias names now; None where there is no such alias.

        Raises:
            RegistryError: the registry could not be asked.
        """
        self.refuse_missing_database()
        try:
            mlflow = _mlflow()
            from mlflow.exceptions import MlflowException

            mlflow.set_tracking_uri(self.tracking_uri)
            try:
                found = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
        except Exception as error:  # database, HTTP and MLflow errors share no base class
            raise RegistryError(f"models:/{name}@{alias} could not be had from {self.shown}: {_safe(error)}") from error
        hashes = {precision: found.tags[tag] for precision, tag in SHA256_TAGS.items() if tag in found.tags}
        return Registered(name, str(found.version), alias, found.creation_timestamp, hashes)

    def fetch(self, registered: Registered) -> Located:
        """Downloads the version unless it is here already, and checks its files against the registry's hashes.

        Raises:
            DamagedError: it is not what was registered.
            RegistryError: it could not be downloaded. Of neither anything stays.
        """
        folder = self.cache_dir / registered.name / registered.folder
        if not folder.is_dir():
            try:
                self._keep(f"models:/{registered.name}/{registered.version}/artifacts", folder, registered.sha256)
            except RegistryError:
                raise
            except Exception as error:  # as in ask, and disk errors
                moved = " (was the project moved? `python -m pipeline.register` there corrects MLflow's paths)"
                raise RegistryError(
                    f"version {registered.version} could not be downloaded from {self.shown}: {_safe(error)}"
                    + (moved if self.tracking_uri.startswith("sqlite:") else "")
                ) from error
        return Located(folder, registered.version, registered.alias)

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
        registered = self.ask(*parse(model))
        if registered is None:
            raise RegistryError(f"{model}: the registry at {self.shown} has no such alias")
        return self.fetch(registered)

    def download(self, artifact_uri: str, folder: Path) -> Path:
        """Downloads an artifact into a folder. Errors are MLflow's own."""
        return Path(
            _mlflow().artifacts.download_artifacts(
                artifact_uri, dst_path=str(folder), tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri
            )
        )

    @property
    def shown(self) -> str:
        """Its address without a password."""
        return _safe(self.tracking_uri)

    def refuse_missing_database(self) -> None:
        """Raises RegistryError where the registry is a file of this machine, and there is none."""
        path = Path(self.tracking_uri.removeprefix("sqlite:///"))
        if self.tracking_uri.startswith("sqlite:///") and not path.is_file():  # MLflow would create an empty one
            raise RegistryError(
                f"there is no registry at {path}; run `dvc repro`, set MLFLOW_TRACKING_URI, "
                "or serve a file with --model"
            )

    def _keep(self, artifact_uri: str, folder: Path, sha256: dict[str, str]) -> None:
        """Downloads to a temporary name and renames, so that an existing folder is always complete."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DOWNLOAD, ignore_cleanup_errors=True) as temporary:
            got = self.download(artifact_uri, Path(temporary))
            for precision, expected in sha256.items():
                try:
                    with (got / FILES[precision]).open("rb") as file:
                        actual = hashlib.file_digest(file, "sha256").hexdigest()
                        os.fsync(file.fileno())  # complete even after a power failure
                except FileNotFoundError:
                    actual = None
                if actual != expected:
                    raise DamagedError(f"{FILES[precision]} of {artifact_uri} is not the file that was registered")
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


def discard(located: Located) -> None:
    """Removes a version's files, so that the next fetch downloads them again."""
    shutil.rmtree(located.path, ignore_errors=True)


def _mlflow() -> Any:
    """MLflow, which takes a second to import, and which serving a file needs not."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def _safe(text: object) -> str:
    """No password in a log."""
    return re.sub(r"//[^/@\s]*@", "//…@", str(text))
