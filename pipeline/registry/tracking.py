"""The MLflow run: one run holds one pass through the pipeline.

A run is found again by a key (recipe, data, machine, folder), so that no stage hands a run id to the next: the first
that asks opens it, the others resume it, and `register` finishes it. A further pass gets its own run, since only a run
that is still RUNNING is resumed; one that an earlier pass of this folder left RUNNING is ended as KILLED.
"""

import hashlib
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# MLflow reads these itself. A user's own setting wins.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", str(sys.stderr.isatty()))
os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's 7 keep a caller waiting for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds

import pandas as pd
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.utils.time import get_current_time_millis
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from sqlalchemy.exc import SQLAlchemyError

from pipeline import params
from pipeline.registry import moved, run_tags
from pipeline.registry.moved import SQLITE
from pipeline.stage import Problem

KEY_TAG = "leukdetect.key"
HEALTH_TIMEOUT = 5  # seconds

FAILURES = (MlflowException, requests.RequestException, SQLAlchemyError)

_lost: set[str] = set()  # runs whose server failed while training; `register` logs what they lack


def uri() -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, or the embedded one in the project's folder, for all of its recipes."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{'../../' if run_tags.own_folder() else ''}mlflow.db"


def shown_uri() -> str:
    """`uri()` for messages: without the user and password that it may hold."""
    return _without_secrets(uri())


def client() -> MlflowClient:
    """A client of `uri()`, for runs and for the registry."""
    return MlflowClient(tracking_uri=uri(), registry_uri=uri())


def check() -> None:
    """Finds in seconds whether MLflow can be used, before anything expensive starts; see `moved` too.

    Raises Problem if the server does not answer, or the SQLite file cannot be written.
    """
    with reachable():
        if uri().startswith(("http://", "https://")):
            # MLflow's own request: with its credentials and certificates, but without its retries.
            creds = get_default_host_creds(uri())
            http_request(creds, "/health", "GET", max_retries=0, timeout=HEALTH_TIMEOUT).raise_for_status()
        elif uri().startswith(SQLITE):
            database = Path(uri().removeprefix(SQLITE)).absolute()
            # SQLite keeps its journal beside the database, so the folder must be writable too.
            needed = [database.parent, database] if database.exists() else [database.parent]
            if blocked := [path for path in needed if not os.access(path, os.W_OK)]:
                raise Problem(
                    f"MLflow's database {database} cannot be written ({blocked[0]} is missing or read-only). "
                    f"Make {database.parent} a writable folder, or set MLFLOW_TRACKING_URI to another place."
                )
            moved.settle(uri())
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


def run_id(recipe: params.Params, data_sha256: str) -> str:
    """Opens the run of this recipe on this data, or resumes it, and logs every parameter.

    Raises Problem, as `check` does, in seconds.
    """
    digest = params.digest(recipe)
    tags = {"leukdetect.data_sha256": data_sha256, "leukdetect.params_sha256": digest}
    key = (digest, data_sha256)
    return opened(recipe.register_.experiment, key, tags, run_tags.name(recipe), run_tags.texts(recipe))


def opened(experiment: str, key: tuple[str, ...], tags: dict[str, str], name: str, values: dict[str, str]) -> str:
    """Opens the run of this key in this folder, or resumes it, and logs its parameters. Raises Problem, as `check`."""
    check()
    place = run_tags.place()
    digest = hashlib.sha256("\n".join((*key, place)).encode()).hexdigest()
    with reachable():
        store = client()
        where = _experiment(store, experiment)
        running = "attributes.status = 'RUNNING' and tags.`{}` = '{}'".format
        if found := store.search_runs([where], running(KEY_TAG, digest), max_results=1):
            run = found[0]
        else:
            for left in store.search_runs([where], running(run_tags.PLACE, place)):
                store.set_terminated(left.info.run_id, "KILLED")  # by a pass that ended before `register`
            run = store.create_run(where, tags={KEY_TAG: digest} | run_tags.tags() | tags, run_name=name)
        # On a resumed run too: it may have been interrupted between being created and this.
        logged = [Param(key, text[:MAX_PARAM_VAL_LENGTH]) for key, text in values.items()]
        store.log_batch(run.info.run_id, params=logged)
    return run.info.run_id


def log_epoch(run_id: str, phase: str, epoch: int, metrics: dict[str, float]) -> None:
    """Logs one epoch as `<phase>/<metric>`. A failing server warns once and never stops training."""
    if run_id in _lost:
        return
    try:
        _log(client(), run_id, {f"{phase}/{name}": value for name, value in metrics.items()}, epoch)
    except FAILURES as error:
        _lost.add(run_id)
        print(
            f"\nwarning: MLflow at {shown_uri()} stopped answering ({_reason(error)}). Training goes on; "
            "`register` will log the epochs that are missing.",
            file=sys.stderr,
        )


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Logs processors, memory, disk, network and, with `nvidia-ml-py`, GPUs as `system/…` every 10 s of the block."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    with reachable():
        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri())
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def replay(run_id: str, phase: str, csv_path: Path) -> None:
    """Logs what a run lacks of a history CSV (a column `epoch`, and one a metric; empty cells are skipped).

    That is the whole history where this pass did not run the phase, and its end where the server failed.

    Raises Problem if MLflow could not be used.
    """
    history = pd.read_csv(csv_path, index_col="epoch", float_precision="round_trip").add_prefix(f"{phase}/")
    with reachable():
        store = client()
        logged = {name: {m.step for m in store.get_metric_history(run_id, name)} for name in history}
        for epoch, row in zip(history.index.tolist(), history.to_dict("records"), strict=True):
            missing = {name: x for name, x in row.items() if not math.isnan(x) and epoch not in logged[name]}
            if missing:
                _log(store, run_id, missing, epoch)


def close(run_id: str, files: list[Path]) -> None:
    """Keeps files as artifacts and ends a run. A failing server only warns: the files are written."""
    try:
        for file in files:
            client().log_artifact(run_id, str(file))
        client().set_terminated(run_id)
    except FAILURES as error:
        print(f"\nwarning: MLflow at {shown_uri()} did not take the files ({_reason(error)})", file=sys.stderr)


def log_new(run_id: str, metrics: dict[str, float]) -> None:
    """Logs those of the metrics (by full name) that the run lacks or holds with another value.

    Raises Problem if MLflow could not be used.
    """
    with reachable():
        store = client()
        logged = store.get_run(run_id).data.metrics
        _log(store, run_id, {name: value for name, value in metrics.items() if not _same(logged.get(name), value)})


def _experiment(store: MlflowClient, name: str) -> str:
    if experiment := store.get_experiment_by_name(name):
        return experiment.experiment_id
    embedded = uri().startswith(SQLITE)
    return store.create_experiment(name, artifact_location=moved.artifacts(uri()).as_uri() if embedded else None)


def _log(store: MlflowClient, run_id: str, metrics: dict[str, float], step: int = 0) -> None:
    now = get_current_time_millis()
    store.log_batch(run_id, metrics=[Metric(name, float(value), now, step) for name, value in metrics.items()])


def _same(a: float | None, b: float) -> bool:
    return a is not None and (a == b or (math.isnan(a) and math.isnan(b)))


def _without_secrets(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _reason(error: Exception) -> str:
    text = _without_secrets(str(error))
    buried = re.search(r"\[Errno -?\d+\] ([^\"')]+)", text)  # the system's words, under four layers of clients
    return buried[1] if buried else text.strip().partition("\n")[0]
