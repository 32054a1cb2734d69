"""Where the model file comes from: a path, the registry, or what the registry gave last time."""

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serving.settings import Settings

FILES = {"fp32": "leukdetect.onnx", "int8": "leukdetect.int8.onnx"}  # in a registered model's artifacts/

# A server must find out soon that its registry is down; MLflow's own defaults take minutes.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}.items():
    os.environ.setdefault(_name, _value)


class RegistryError(Exception):
    """The registry could not be asked, or does not hold what was asked for."""


@dataclass(frozen=True)
class Located:
    """A model file on this machine, and what the registry calls it."""

    path: Path
    version: str | None = None  # None: a file that was named directly
    alias: str | None = None


def resolve(settings: Settings) -> Located:
    """Finds the file that `settings.model` names; a registered version is downloaded once and kept.

    Raises:
        RegistryError: no such file, alias or registry; the message says what to do.
    """
    if not settings.model.startswith("models:/"):
        path = Path(settings.model)
        if not path.is_file():
            raise RegistryError(f"{path} is no file; name an .onnx file or a registry alias (models:/NAME@ALIAS)")
        return Located(path)
    name, alias = _parse(settings.model)
    _refuse_missing_database(settings.tracking_uri)
    try:
        import mlflow  # a second to import: not when a file is served

        mlflow.set_tracking_uri(settings.tracking_uri)
        version = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
        # A registry that is made anew counts from 1 again: the time of creation tells its versions apart.
        folder = settings.cache_dir / name / f"{version.version}-{version.creation_timestamp}"
        if not folder.is_dir():
            _download(f"models:/{name}/{version.version}/artifacts", folder)
    except Exception as error:  # database, HTTP and MLflow errors of every kind mean one thing here
        message = f"{settings.model} could not be had from {settings.tracking_uri}: {error}"
        raise RegistryError(re.sub(r"//[^/@\s]*@", "//…@", message)) from error  # no password in a log
    return Located(folder / FILES[settings.precision], str(version.version), alias)


def remember(settings: Settings, located: Located) -> None:
    """Notes that this file was loaded and passed every check, for a start while the registry is down."""
    if located.version is None:
        return
    note = {"model": settings.model, "version": located.version, "folder": located.path.parent.name}
    _write(_note(settings), json.dumps(note, indent=2) + "\n")


def last_known_good(settings: Settings) -> Located | None:
    """The file that `remember` noted for the same alias, if it is still there."""
    if not settings.model.startswith("models:/"):
        return None
    try:
        note = json.loads(_note(settings).read_text())
        located = Located(_note(settings).parent / note["folder"] / FILES[settings.precision], note["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if note.get("model") != settings.model or not located.path.is_file():
        return None
    return Located(located.path, located.version, _parse(settings.model)[1])


def _parse(model: str) -> tuple[str, str]:
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


def _download(artifact_uri: str, folder: Path) -> None:
    """Downloads under a temporary name, so that a folder that is there is whole."""
    import mlflow

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-", ignore_cleanup_errors=True) as temporary:
        got = mlflow.artifacts.download_artifacts(artifact_uri=artifact_uri, dst_path=temporary)
        try:
            Path(got).replace(folder)
        except OSError:
            if not folder.is_dir():  # else another worker was faster
                raise


def _note(settings: Settings) -> Path:
    return settings.cache_dir / _parse(settings.model)[0] / "last_known_good.json"


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
