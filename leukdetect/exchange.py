"""Speaks to MLflow for `registry`, in a process of its own, which an endless answer cannot outlive or outgrow."""

import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from leukdetect.child import limit, serve

MEMORY = 400_000_000  # bytes beyond MLflow's own; an answer is read into memory before anybody can look at it
# With MLflow's own it takes minutes to notice that a registry is down.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a file that was restored or made anew is opened anew
}


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    os.environ.clear()
    os.environ.update(DEFAULTS | question.pop("environment"))
    try:
        import mlflow

        mlflow.set_tracking_uri(question.pop("uri"))
        return _download(**question) if "artifact" in question else _ask(**question)
    except Exception as error:  # database, HTTP and MLflow errors share no base class
        return {"error": safe(error)}


def _ask(name: str, alias: str) -> dict[str, Any]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        found = MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return {"found": None}
        raise
    return {"found": {"version": str(found.version), "created": found.creation_timestamp, "tags": found.tags}}


def _download(artifact: str, folder: str, most: int) -> dict[str, Any]:
    """Where the artifact is, in the folder; an error as soon as that holds more than `most` bytes."""
    from mlflow.artifacts import download_artifacts

    got: dict[str, Any] = {}

    def work() -> None:
        try:
            got["path"] = download_artifacts(artifact, dst_path=folder)
        except Exception as error:  # as above
            got["error"] = safe(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while True:
        thread.join(0.2)
        if _size(Path(folder)) > most:
            return {"error": f"it sends more than {most / 1e6:g} MB", "goes_on": True}
        if not thread.is_alive():
            return got or {"error": "the download was given up"}


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # renamed meanwhile
            total += file.lstat().st_size
    return total


def safe(text: object) -> str:
    """No password in a log."""
    return re.sub(r"//[^/@\s]*@", "//…@", str(text))


def _main() -> None:
    os.environ.update(DEFAULTS | os.environ)
    import mlflow  # noqa: F401 (a second or two, once)

    limit(MEMORY)
    serve(_answer)


if __name__ == "__main__":
    _main()
