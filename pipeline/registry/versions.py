"""Versions of the registered model: how one is made, its aliases, its files."""

import importlib.metadata
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array, Map, Object, Property

from leukdetect import runtime
from leukdetect.contract import FILES, SHA256_TAGS, Contract
from leukdetect.registry import Registry
from pipeline import params, stage
from pipeline.data.source import SOURCE
from pipeline.evaluation.report import METRICS, Report
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8, OnnxModel
from pipeline.registry import tracking
from pipeline.stage import Problem

REPORTS = Path("reports")
ARTIFACTS = {  # of a version, by the name under which MLflow's pyfunc model finds them
    "onnx": FP32,
    "int8": INT8,
    "metrics": METRICS,
    "model_card": REPORTS / "model_card.md",
    "report": REPORTS / "report.html",
    "datasheet": REPORTS / "datasheet.html",
}
LOGGED = (  # of reports/, to the run
    *("figures", "plots", "history"),
    *("metrics.json", "predictions.csv", "parity.json", "report.html", "validation.json"),
    *("model_card.md", "datasheet.md", "datasheet.html"),
)
PICTURES = (REPORTS / "figures/mistakes.png", REPORTS / "figures/overlays.png")  # they show images of the data
SHA256_TAG = SHA256_TAGS["fp32"]  # what a version is known again by
NUMBER, TEXT = DataType.double, DataType.string
SIGNATURE = ModelSignature(
    # Images of any size, or files: an array of anything. With uint8 here, MLflow's server would cast 0.5 to 0.
    Schema([TensorSpec(np.dtype(object), (-1,))]),
    Schema(
        [
            *(ColSpec(TEXT, name) for name in ("class", "label", "decision", "wording", "disclaimer")),
            ColSpec(NUMBER, "unlikeness"),
            ColSpec(NUMBER, "p_malignant", required=False),
            *(ColSpec(Map(NUMBER), name) for name in ("probabilities", "quality")),
            ColSpec(DataType.boolean, "malignant", required=False),
            ColSpec(Array(TEXT), "not_excluded", required=False),
            ColSpec(Array(Object([Property(name, TEXT) for name in ("code", "brief", "detail")])), "reasons"),
        ]
    ),
)
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pillow", "pydantic", "simplejpeg")  # what leukdetect needs


class ModelFile(NamedTuple):
    """A model file of a version, as the registry has it."""

    sha256: str
    contract: Contract


def register(
    client: MlflowClient, recipe: params.Params, model: OnnxModel, measured: Report, source: dict[str, Any]
) -> tuple[str, str]:
    """Logs everything to the run and creates the version; a file that was registered before, and is there, keeps both.

    Returns:
        The run's id and the version.
    """
    name, sha256 = recipe.register_.name, stage.sha256(model.path)
    headline = {tag: f"{estimate.value:.4f}" for tag, estimate in measured.headline().items()}
    registered = client.search_model_versions(f"name = '{name}' and tags.`{SHA256_TAG}` = '{sha256}'")
    known = [each for each in registered if _has_files(client, name, str(each.version))]
    run_id = (known[0].run_id if known else None) or _run_id(client, model, recipe)
    _log_reports(client, run_id, model, measured, source)
    version = str((known[0] if known else _new_version(client, name, run_id, model, source)).version)
    for tag, value in headline.items():  # on a known version too: evaluation may have changed
        client.set_model_version_tag(name, version, tag, value)
    return run_id, version


def finish(client: MlflowClient, name: str, run_id: str, version: str, outcome: str) -> None:
    """Notes the gate's outcome with the version and the run, and ends the run."""
    client.set_model_version_tag(name, version, "gate", outcome)
    client.set_tag(run_id, "gate", outcome)
    if client.get_run(run_id).info.status == "RUNNING":  # one that had ended before keeps its end time
        client.set_terminated(run_id)


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """The version that each alias names."""
    found = client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}  # SQLite gives an int, whatever MLflow's type says


def move(client: MlflowClient, name: str, alias: str, version: str | None) -> None:
    """Moves an alias at once, so that it is never missing meanwhile; None removes it."""
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, version)


def refuse_unless_passed(client: MlflowClient, name: str, version: str) -> None:
    """Raises Problem if there is no such version, or the gate did not let it pass."""
    gates = {str(each.version): each.tags.get("gate") for each in client.search_model_versions(f"name = '{name}'")}
    if version not in gates:
        raise Problem(f"{name} has no version {version or 'with the alias champion'}; it has {', '.join(gates) or '–'}")
    if gates[version] != "passed":
        raise Problem(
            f"{name} version {version} did not pass the gate (its tag `gate` is {gates[version]}), so it is not "
            "deployed. `python -m pipeline.register` says what falls short."
        )


def is_of(client: MlflowClient, name: str, version: str, sha256: str) -> bool:
    """Whether the version is of the file of this hash."""
    return bool(client.get_model_version(name, version).tags.get(SHA256_TAG) == sha256)


def download(name: str, version: str, folder: Path, file: str = "") -> Path:
    """Downloads a version's artifacts, or one of them, into a folder. Raises Problem if they are not there."""
    uri = f"models:/{name}/{version}/artifacts/{file}".rstrip("/")
    try:
        return Registry(tracking.uri(), folder).download(uri, folder)
    except (MlflowException, OSError) as error:
        raise Problem(
            f"the files of {name} version {version} could not be fetched: {error}\n"
            "Restore them, or move the alias to a version that has its files."
        ) from error


def model_files(name: str, version: str) -> dict[str, ModelFile]:
    """Both model files of a version, by precision: servers are held to the golden sets in them."""
    with tempfile.TemporaryDirectory() as folder:
        got = download(name, version, Path(folder))
        return {
            precision: ModelFile(stage.sha256(got / file), onnx_model.load(got / file).contract)
            for precision, file in FILES.items()
        }


def _has_files(client: MlflowClient, name: str, version: str) -> bool:
    """Whether a version's model files can still be had: somebody may have cleared the store."""
    uri = client.get_model_version_download_uri(name, version)
    found = mlflow.artifacts.list_artifacts(artifact_uri=f"{uri}/artifacts", tracking_uri=tracking.uri())
    return {Path(each.path).name for each in found} >= set(FILES.values())


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
    for path in (params.PARAMS_FILE, SOURCE, *(REPORTS / name for name in LOGGED)):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file() and (source["thumbnails"] or file not in PICTURES):
                client.log_artifact(run_id, str(file), path.name if path.is_dir() else None)


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
            SHA256_TAGS["fp32"]: stage.sha256(FP32),
            SHA256_TAGS["int8"]: stage.sha256(INT8),
            "leukdetect.git_commit": provenance.git_commit,
            "leukdetect.data_sha256": provenance.data_sha256,
            "leukdetect.params_sha256": provenance.params_sha256,
        },
    )


def _log_model(client: MlflowClient, run_id: str, name: str, model: OnnxModel) -> str:
    """Uploads the pyfunc model's folder (both ONNX files in its `artifacts/`, leukdetect in its `code/`).

    What `mlflow.pyfunc.log_model` does, but for an explicit server and with no look at what is installed.

    Returns:
        The logged model's id.
    """
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name, source_run_id=run_id, model_type="classification")
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
            code_paths=[str(Path(runtime.__file__).parent)],
            artifacts={key: str(path) for key, path in ARTIFACTS.items()},
            signature=SIGNATURE,
            pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS],
        )
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id
