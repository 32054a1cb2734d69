"""The MLflow run: one run holds one pass through the chain.

A run is found again by a key (recipe, data, machine, folder), so that no stage hands a run id to the next:
the first that asks opens it, the others resume it, and `register` finishes it. A further pass gets its own
run, since only a run that is still RUNNING is resumed.
"""

import csv
import hashlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# MLflow reads these itself. A user's own setting wins.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", str(sys.stderr.isatty()))
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's 7 keep a caller waiting for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from sqlalchemy.exc import SQLAlchemyError

from pipeline import params as recipes
from pipeline.stage import Problem

SQLITE = "sqlite:///"
ARTIFACTS = Path("mlartifacts")  # of the embedded MLflow; a server keeps its own
KEY_TAG = "leukdetect.key"
HEALTH_TIMEOUT = 5  # seconds

FAILURES = (MlflowException, requests.RequestException, SQLAlchemyError)

_lost: set[str] = set()  # runs whose server failed while training; register replays what they lack


def uri() -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, or the embedded one in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"


def shown_uri() -> str:
    """`uri()` for messages: without the user and password that it may hold."""
    return _without_secrets(uri())


def client() -> MlflowClient:
    """A client of `uri()`, for runs and for the registry."""
    return MlflowClient(tracking_uri=uri(), registry_uri=uri())


def check() -> None:
    """Finds in seconds whether MLflow can be used, before anything expensive starts.

    Raises:
        Problem: the server does not answer, or the SQLite file cannot be written.
    """
    with reachable():
        if uri().startswith(("http://", "https://")):
            # MLflow's own request: with its credentials and certificates, but without its retries.
            creds = get_default_host_creds(uri())
            http_request(creds, "/health", "GET", max_retries=0, timeout=HEALTH_TIMEOUT).raise_for_status()
        elif uri().startswith(SQLITE):
            _check_writable(Path(uri().removeprefix(SQLITE)))
        else:
            client().search_experiments(max_results=1)


@contextmanager
def reachable() -> Iterator[None]:
    """Turns whatever MLflow or the way to it raises into one Problem that names the URI."""
    try:
        yield
    except FAILURES as error:
        raise Problem(
            f"MLflow at {shown_uri()} could not be used: {_reason(error)}\n"
            "Start that server or correct MLFLOW_TRACKING_URI (unset, MLflow lives in ./mlflow.db), then run this "
            "again: it goes on where it was."
        ) from error


def run_id(params: recipes.Params, data_sha256: str) -> str:
    """Opens the run of this recipe on this data, or resumes it, and logs every parameter but the gate's.

    Raises:
        Problem: MLflow could not be used.
    """
    parts = (recipes.digest(params), data_sha256, socket.gethostname(), str(Path.cwd()))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    with reachable():
        store = client()
        experiment = _experiment(store, params.register_.experiment)
        is_this_pass = f"tags.`{KEY_TAG}` = '{key}' and attributes.status = 'RUNNING'"
        running = store.search_runs([experiment], is_this_pass, max_results=1)
        if running:
            run = running[0]
        else:
            tags = {
                KEY_TAG: key,
                "leukdetect.git_commit": git_commit(),
                "leukdetect.data_sha256": data_sha256,
                "leukdetect.params_sha256": recipes.digest(params),
            }
            run = store.create_run(experiment, tags=tags, run_name=_name(params))
        # On a resumed run too: it may have been interrupted between being created and this.
        store.log_batch(run.info.run_id, params=_flat_params(params))
    return run.info.run_id


def log_epoch(run_id: str, phase: str, epoch: int, metrics: dict[str, float]) -> None:
    """Logs one epoch as `<phase>/<metric>`. A failing server warns once and never stops training."""
    if run_id in _lost:
        return
    try:
        _log(client(), run_id, phase, epoch, metrics)
    except FAILURES as error:
        _lost.add(run_id)
        print(
            f"\nwarning: MLflow at {shown_uri()} stopped answering ({_reason(error)}). Training goes on; "
            "`register` will log the epochs that are missing.",
            file=sys.stderr,
        )


def replay(run_id: str, phase: str, csv_path: Path) -> None:
    """Logs what a run lacks of a history CSV (a column `epoch`, and one a metric; empty cells are skipped).

    That is the whole history when a pass skipped the phase, and the end of it when the server failed.

    Raises:
        Problem: MLflow could not be used.
    """
    with csv_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with reachable():
        store = client()
        names = [name for name in (rows[0] if rows else {}) if name != "epoch"]
        logged = {name: {m.step for m in store.get_metric_history(run_id, f"{phase}/{name}")} for name in names}
        for row in rows:
            epoch = int(row["epoch"])
            missing = {name: float(row[name]) for name in names if row[name] and epoch not in logged[name]}
            if missing:
                _log(store, run_id, phase, epoch, missing)


def log_new(run_id: str, metrics: dict[str, float]) -> None:
    """Logs those of the metrics (by full name) that the run lacks or holds with another value.

    Raises:
        Problem: MLflow could not be used.
    """
    with reachable():
        store = client()
        logged = store.get_run(run_id).data.metrics
        now = _now()
        new = [Metric(name, value, now, 0) for name, value in metrics.items() if not _same(logged.get(name), value)]
        store.log_batch(run_id, metrics=new)


def flat(value: Any, separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of joined keys. Lists stay whole."""
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, item in value.items():
        result |= flat(item, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    return result


def git_commit() -> str:
    """HEAD's 40 hex digits, with `-dirty` if tracked files differ from it, or `unknown` outside git.

    dvc.lock and reports/ do not count: the pipeline itself rewrites them on every run.
    """
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":/",
            ":(top,exclude)dvc.lock",
            ":(top,exclude)reports",
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changes else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _experiment(store: MlflowClient, name: str) -> str:
    experiment = store.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    embedded = uri().startswith(SQLITE)
    return store.create_experiment(name, artifact_location=ARTIFACTS.resolve().as_uri() if embedded else None)


def _name(params: recipes.Params) -> str:
    return "-".join(
        [
            params.fetch.source,
            f"{params.prepare.image_size}px",
            Path(params.features.weights).name,
            recipes.digest(params)[:7],
        ]
    )


def _flat_params(params: recipes.Params) -> list[Param]:
    values = flat(params.model_dump(mode="json", by_alias=True, exclude={"gate"}), ".")
    text = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()
    }
    return [Param(key, value[:MAX_PARAM_VAL_LENGTH]) for key, value in text.items()]


def _log(store: MlflowClient, run_id: str, phase: str, epoch: int, metrics: dict[str, float]) -> None:
    now = _now()
    store.log_batch(
        run_id, metrics=[Metric(f"{phase}/{name}", float(value), now, epoch) for name, value in metrics.items()]
    )


def _now() -> int:
    return int(time.time() * 1000)


def _same(a: float | None, b: float) -> bool:
    return a is not None and (a == b or (math.isnan(a) and math.isnan(b)))


def _check_writable(database: Path) -> None:
    try:
        # SQLite keeps its journal beside the database, so the folder must be writable too.
        with tempfile.TemporaryFile(dir=database.parent):
            pass
        if database.exists():
            database.open("ab").close()
    except OSError as error:
        raise Problem(
            f"MLflow's database {database} cannot be written ({error.strerror}). "
            f"Make {database.absolute().parent} a writable folder, or set MLFLOW_TRACKING_URI to another place."
        ) from error


def _without_secrets(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _reason(error: Exception) -> str:
    text = _without_secrets(str(error))
    buried = re.search(r"\[Errno -?\d+\] ([^\"')]+)", text)  # what the system said, under four layers of clients
    return buried.group(1) if buried else text.strip().partition("\n")[0]
