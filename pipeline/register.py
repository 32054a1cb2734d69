"""Registers the model that was evaluated, and lets it serve if it passes the gate.

Reads:  models/*.onnx, reports/ (metrics, figures, plots, history, validation, predictions, model card),
        data/source.json, data/prepared/ and data/raw/ (the champion answers for the same test images), the registry
Writes: the registry, reports/registration.json, reports/promotions.jsonl (one line appended a promotion)
Run:    python -m pipeline.register   (exit 1 if the gate refuses)
"""

import json
import math
import os
import tempfile
import warnings
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from leukdetect import images
from leukdetect.contract import SHA256_TAGS
from pipeline import params, stage
from pipeline.data import prepared
from pipeline.data.source import RAW, SOURCE, read_source
from pipeline.evaluation import compare, report
from pipeline.evaluation import metrics as measures
from pipeline.evaluation.report import Report
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8, OnnxModel
from pipeline.registry import gate, tracking
from pipeline.stage import Problem

REPORTS = Path("reports")
MODEL_CARD = REPORTS / "model_card.md"
REPORT = REPORTS / "report.html"
DATASHEET = REPORTS / "datasheet.html"
REGISTRATION = REPORTS / "registration.json"
PROMOTIONS = REPORTS / "promotions.jsonl"
LOGGED_FOLDERS = ("figures", "plots", "history", "validation")
LOGGED_FILES = (
    "metrics.json",
    "predictions.csv",
    "model_card.md",
    "datasheet.md",
    "datasheet.html",
    "report.html",
    "parity.json",
)
SHA256_TAG = SHA256_TAGS["fp32"]  # what a version is known again by


def main() -> None:
    recipe = params.load()
    tracking.check()
    model, measured, source = onnx_model.load(FP32), report.read(), read_source()
    onnx_model.load(INT8)  # a broken one must be found before it is registered
    PROMOTIONS.touch()  # an output of this stage even while nothing was ever promoted

    with tracking.reachable():
        client = tracking.client()
        run_id, version = _register(client, recipe, model, measured, source)
        champion = _champion(client, recipe.register_.name)
        if version != champion:
            client.set_registered_model_alias(recipe.register_.name, "challenger", version)
        checks, note = _judge(recipe, model, measured, version, champion)
        outcome = _outcome(recipe.gate.mode, checks)
        promoted = version != champion and outcome in ("off", "passed")
        if promoted:
            _promote(client, recipe.register_.name, version, champion)
            _append_promotion(recipe.register_.name, version, champion, run_id, model, measured)
        _finish(client, recipe.register_.name, run_id, version, outcome)

    registration = {
        "name": recipe.register_.name,
        "version": version,
        "run_id": run_id,
        "alias": "champion" if promoted or version == champion else "challenger",
        "gate": outcome,
        "note": note,
        "checks": [asdict(check) | {"value": None if math.isnan(check.value) else check.value} for check in checks],
    }
    stage.write_json(REGISTRATION, registration)
    print(f"{recipe.register_.name} version {version}, run {run_id}, in {tracking.shown_uri()}")
    if checks:
        print(gate.table(checks))
    print(note)
    if outcome == "failed":
        short = ", ".join(check.name for check in checks if not check.passed)
        raise Problem(f"params.gate refuses version {version}. It falls short in: {short}. {_stays(version, champion)}")
    if outcome == "dry-run":
        would = "pass" if all(check.passed for check in checks) else "refuse"
        print(f"Dry run: the gate would {would} it. {_stays(version, champion)}")
    elif promoted:
        print(f"Version {version} is champion now." + (f" Version {champion} is 'previous'." if champion else ""))
    else:
        print(_stays(version, champion))


def _champion(client: MlflowClient, name: str) -> str | None:
    version = client.get_registered_model(name).aliases.get("champion")
    return None if version is None else str(version)  # SQLite gives an int, whatever MLflow's type says


def _outcome(mode: str, checks: list[gate.Check]) -> str:
    if mode != "enforce":
        return mode
    return "passed" if all(check.passed for check in checks) else "failed"


def _stays(version: str, champion: str | None) -> str:
    if version == champion:
        return f"Version {version} was champion before and stays it."
    return f"Version {version} is 'challenger'; " + (
        f"version {champion} stays champion." if champion else "there is no champion."
    )


def _judge(
    recipe: params.Params, model: OnnxModel, measured: Report, version: str, champion: str | None
) -> tuple[list[gate.Check], str]:
    """The gate's checks, and a sentence on how the champion was compared with."""
    if recipe.gate.mode == "off":
        return [], "The gate is off: nothing was checked."
    regression = None
    if champion is None:
        note = "There is no champion to compare with."
    elif champion == version:
        note = "It is the champion: nothing to compare it with."
    else:
        with tempfile.TemporaryDirectory() as folder:
            other = onnx_model.load(_download(recipe.register_.name, champion, Path(folder)))
            keys, other_keys = [[c.key for c in m.contract.classes] for m in (model, other)]
            if keys == other_keys:
                regression, test = _regression(recipe, model, other)
                note = f"Compared with champion version {champion} on the same test images. " + compare.sentence(
                    test, f"version {version}", f"version {champion}"
                )
            else:
                note = f"Not compared with champion version {champion}: its classes are {', '.join(other_keys)}."
    return gate.verdict(measured, recipe.gate, regression, [c.key for c in recipe.classes]), note


def _regression(
    recipe: params.Params, model: OnnxModel, champion: OnnxModel
) -> tuple[measures.Estimate, measures.McNemar]:
    """How much better than the champion: balanced accuracy on the test split, each at its own image size.

    A champion that was trained on another split may have seen some of these images, and then looks better than
    it is: the comparison errs on the strict side.
    """
    pixels, rows = prepared.read("test")
    new, old = [
        m.predict(_at_size(pixels, rows, m.contract.decode.size))["probabilities"].argmax(1) for m in (model, champion)
    ]
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    weights = measures.group_weights(labels, groups, recipe.evaluate.bootstrap, recipe.seed)
    return (
        measures.paired_bootstrap(labels, new, old, weights),
        measures.mcnemar(new == labels, old == labels),
    )


def _at_size(pixels: np.ndarray, rows: pd.DataFrame, size: int) -> np.ndarray:
    if pixels.shape[1] == size:
        return pixels[rows.index]
    files = stage.progress([RAW / path for path in rows["path"]], f"decode at {size} px")
    return np.stack([images.resize(images.decode(file.read_bytes()), size) for file in files])


def _download(name: str, version: str, folder: Path) -> Path:
    try:
        return Path(
            mlflow.artifacts.download_artifacts(
                f"models:/{name}/{version}/artifacts/{FP32.name}",
                dst_path=str(folder),
                tracking_uri=tracking.uri(),
                registry_uri=tracking.uri(),
            )
        )
    except (MlflowException, OSError) as error:
        raise Problem(
            f"the champion, {name} version {version}, could not be fetched to compare with: {error}\n"
            "Restore its files, or move the alias 'champion' to a version that has them."
        ) from error


def _promote(client: MlflowClient, name: str, version: str, champion: str | None) -> None:
    """Moves the aliases. Setting one replaces it at once, so at no moment is there no champion."""
    if champion is not None:
        client.set_registered_model_alias(name, "previous", champion)
    client.set_registered_model_alias(name, "champion", version)
    client.delete_registered_model_alias(name, "challenger")


def _append_promotion(
    name: str, version: str, champion: str | None, run_id: str, model: OnnxModel, measured: Report
) -> None:
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": name,
        "version": version,
        "from_version": champion,
        "run_id": run_id,
        "sha256": stage.sha256(model.path),
        "git_commit": model.contract.provenance.git_commit,
        "balanced_accuracy": measured.fp32.balanced_accuracy.value,
    }
    with PROMOTIONS.open("a") as file:  # appending one short line is atomic: two processes never mix theirs
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _register(
    client: MlflowClient, recipe: params.Params, model: OnnxModel, measured: Report, source: dict[str, Any]
) -> tuple[str, str]:
    """Logs everything to the run and creates the version; a file that was registered before keeps both.

    Returns:
        The run's id and the version.
    """
    name, sha256 = recipe.register_.name, stage.sha256(model.path)
    headline = {tag: f"{estimate.value:.4f}" for tag, estimate in measured.headline().items()}
    known = client.search_model_versions(f"name = '{name}' and tags.`{SHA256_TAG}` = '{sha256}'")
    run_id = (known[0].run_id if known else None) or _run_id(client, model, recipe)
    _log_reports(client, run_id, model, measured, source)
    version = str((known[0] if known else _new_version(client, name, run_id, model, source)).version)
    for tag, value in headline.items():  # on a known version too: evaluation may have changed
        client.set_model_version_tag(name, version, tag, value)
    return run_id, version


def _run_id(client: MlflowClient, model: OnnxModel, recipe: params.Params) -> str:
    """The run that the model file names, if this MLflow has it; else the run of this recipe, opened if need be."""
    provenance = model.contract.provenance
    try:
        return client.get_run(provenance.mlflow_run).info.run_id
    except MlflowException as error:
        # A server with accounts says the second of a run that it does not have, to all but its administrators.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        return tracking.run_id(recipe, provenance.data_sha256)


def _log_reports(client: MlflowClient, run_id: str, model: OnnxModel, measured: Report, source: dict[str, Any]) -> None:
    for history in sorted((REPORTS / "history").glob("*.csv")):
        tracking.replay(run_id, history.stem, history)
    numbers = {key: value for key, value in tracking.flat(measured.plain(), "/").items() if type(value) in (int, float)}
    tracking.log_new(run_id, numbers)

    dataset = Dataset(
        name=source["source"],
        digest=model.contract.provenance.data_sha256[:16],  # MLflow takes 36 at most
        source_type="leukdetect",
        source=json.dumps(source, ensure_ascii=False),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    client.log_artifact(run_id, str(params.PARAMS_FILE))
    client.log_artifact(run_id, str(SOURCE))
    for folder in LOGGED_FOLDERS:
        if (REPORTS / folder).is_dir():
            client.log_artifacts(run_id, str(REPORTS / folder), folder)
    for file in LOGGED_FILES:
        if (REPORTS / file).is_file():
            client.log_artifact(run_id, str(REPORTS / file))


def _new_version(
    client: MlflowClient, name: str, run_id: str, model: OnnxModel, source: dict[str, Any]
) -> ModelVersion:
    """Uploads the model first, then registers it: a version never lacks its files."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    model_id = _log_model(client, run_id, name, model)
    provenance = model.contract.provenance
    warning = "Trained on rendered images: its numbers have no clinical meaning. " if provenance.synthetic else ""
    return client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        model_id=model_id,
        description=f"{warning}Data: {source['origin']}",
        tags={
            **{SHA256_TAGS[precision]: stage.sha256(path) for precision, path in (("fp32", FP32), ("int8", INT8))},
            "leukdetect.git_commit": provenance.git_commit,
            "leukdetect.data_sha256": provenance.data_sha256,
            "leukdetect.params_sha256": provenance.params_sha256,
        },
    )


def _log_model(client: MlflowClient, run_id: str, name: str, model: OnnxModel) -> str:
    """Uploads the pyfunc model folder (both ONNX files in its `artifacts/`) and returns its id.

    What `mlflow.pyfunc.log_model` does, but for an explicit server and with no look at what is installed.
    """
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name, source_run_id=run_id, model_type="classification")
    size = model.contract.decode.size
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # About type hints of MLflow's own classes, and for an input example, which would be megabytes of JSON.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            path=f"{folder}/model",
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                metadata={"classes": [c.key for c in model.contract.classes]},
            ),
            python_model=Path(__file__).with_name("pyfunc.py"),
            artifacts={
                "onnx": str(FP32),
                "int8": str(INT8),
                "metrics": str(report.METRICS),
                "model_card": str(MODEL_CARD),
                "report": str(REPORT),
                "datasheet": str(DATASHEET),
            },
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))]),
                Schema([TensorSpec(np.dtype(np.float32), (-1, len(model.contract.classes)))]),
            ),
            pip_requirements=[f"{package.__name__}=={package.__version__}" for package in (mlflow, np, onnxruntime)],
        )
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id


def _finish(client: MlflowClient, name: str, run_id: str, version: str, outcome: str) -> None:
    client.set_model_version_tag(name, version, "gate", outcome)
    client.set_tag(run_id, "gate", outcome)
    if client.get_run(run_id).info.status == "RUNNING":  # one that had ended before keeps its end time
        client.set_terminated(run_id)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing; `dvc repro` makes it") from error


if __name__ == "__main__":
    stage.run(main)
