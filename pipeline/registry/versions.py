"""Versions of the registered model: how one is made, its aliases, its files."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from leukdetect.contract import FILES, SHA256_TAGS, Contract
from leukdetect.registry import Registry, RegistryError
from pipeline import params, sections, stage
from pipeline.data.source import RAW, SOURCE
from pipeline.evaluation.report import Report
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8, OnnxModel
from pipeline.registry import git, logged_model, tracking
from pipeline.registry.logged_model import REPORTS
from pipeline.registry.run_tags import flat
from pipeline.stage import Problem

LOGGED = (  # of reports/, to the run
    *("figures", "plots", "history"),
    *("headline.json", "metrics.json", "predictions.csv", "parity.json", "report.html", "validation.json"),
    *("model_card.md", "datasheet.md", "datasheet.html"),
)
TOP = (REPORTS, SOURCE.parent, params.PARAMS_FILE.parent)  # folders whose files lie at the top of the run's artifacts
PICTURES = (REPORTS / "figures/mistakes.png", REPORTS / "figures/overlays.png")  # they show images of the data
SHA256_TAG = SHA256_TAGS["fp32"]  # what a version is known again by
REPORTS_TAG = "leukdetect.reports_sha256"  # of what was logged with it
LOCK_TAGS = {FP32: "leukdetect.md5.fp32", INT8: "leukdetect.md5.int8"}  # as dvc.lock names the files
JUDGED = ("passed", "failed", "off")  # of the tag `gate`: verdicts, which a dry run is not


class ModelFile(NamedTuple):
    """A model file of a version, as the registry has it."""

    sha256: str
    contract: Contract


def register(
    client: MlflowClient,
    recipe: params.Params,
    model: OnnxModel,
    measured: Report,
    source: dict[str, Any],
    *,
    dry_run: bool = False,
) -> tuple[str, str]:
    """Logs everything to the run and creates the version; a file that was registered before, and is there, keeps both.

    What the registry has already is not logged again, and a dry run changes nothing of a version that was judged.

    Returns:
        The run's id and the version.
    """
    name, sha256 = recipe.register_.name, stage.sha256(model.path)
    registered = client.search_model_versions(f"name = '{name}' and tags.`{SHA256_TAG}` = '{sha256}'")
    known = next((each for each in registered if _has_files(client, name, str(each.version))), None)
    run_id = (known.run_id if known else None) or _run_id(client, model, recipe)
    reports = _reports_sha256()
    if known and (known.tags.get(REPORTS_TAG) == reports or (dry_run and known.tags.get("gate") in JUDGED)):
        return run_id, str(known.version)
    _log_reports(client, run_id, recipe, model, measured, source)
    version = str((known or _new_version(client, recipe, run_id, model, source)).version)
    headline = {tag: f"{value:.4f}" for tag, value in flat(measured.headline(), ".").items()}
    for tag, value in (headline | {REPORTS_TAG: reports}).items():  # on a known one too: evaluation may have changed
        client.set_model_version_tag(name, version, tag, value)
    return run_id, version


def promote(client: MlflowClient, name: str, version: str, former: str | None) -> None:
    """Makes a version champion, and the one that it was compared with previous.

    Raises Problem: another one became champion meanwhile.
    """
    present = aliases(client, name).get("champion")
    if present != former:
        raise Problem(f"version {present} became champion while version {version} was judged; run this again")
    if former:
        move(client, name, "previous", former)
    move(client, name, "champion", version)
    move(client, name, "challenger", None)


def finish(client: MlflowClient, name: str, run_id: str, version: str, outcome: str, reason: str | None) -> None:
    """Notes the gate's outcome with the version and the run, who ran it, and why the gate was off; ends the run.

    A dry run takes back no verdict.
    """
    known = client.get_model_version(name, version).tags
    if outcome in JUDGED or known.get("gate") not in JUDGED:
        why = {"gate.reason": reason} if outcome == "off" and reason else {}
        for tag, value in ({"gate": outcome, "gate.by": git.who()} | why).items():
            client.set_model_version_tag(name, version, tag, value)
            client.set_tag(run_id, tag, value)
        if "gate.reason" in known and not why:
            client.delete_model_version_tag(name, version, "gate.reason")
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


def download(name: str, version: str, folder: Path, file: str = "") -> Path:
    """Downloads a version's artifacts, or one of them, into a folder. Raises Problem if they are not there."""
    uri = f"models:/{name}/{version}/artifacts/{file}".rstrip("/")
    try:
        return Registry(tracking.uri(), folder).download(uri, folder)
    except (RegistryError, OSError) as error:
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


def _reports_sha256() -> str:
    digest = hashlib.sha256()
    for file in _logged():
        digest.update(f"{file.as_posix()} {stage.sha256(file)}\n".encode())
    return digest.hexdigest()


def _logged() -> list[Path]:
    paths = params.PARAMS_FILE, SOURCE, *(REPORTS / name for name in LOGGED)
    files = (file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]))
    return [file for file in files if file.is_file()]


def _opens(fetch: sections.Fetch) -> tuple[str, dict[str, str]]:
    """Where the images are, as MLflow opens it: an address, or the folder below this one that `fetch` filled."""
    if fetch.source == "kaggle":
        return "http", {"url": f"https://www.kaggle.com/datasets/{fetch.kaggle}"}
    if fetch.source == "archive" and str(fetch.archive).lower().startswith(("http://", "https://")):
        return "http", {"url": str(fetch.archive)}
    return "local", {"uri": RAW.as_posix()}


def _log_reports(
    client: MlflowClient,
    run_id: str,
    recipe: params.Params,
    model: OnnxModel,
    measured: Report,
    source: dict[str, Any],
) -> None:
    for history in sorted((REPORTS / "history").glob("*.csv")):
        tracking.replay(run_id, history.stem, history)
    tracking.log_new(run_id, flat(measured.headline(), "/"))  # metrics.json has the rest
    kind, where = _opens(recipe.fetch)
    dataset = Dataset(
        name=source["source"],
        digest=model.contract.provenance.data_sha256[:16],  # MLflow takes 36 at most
        source_type=kind,
        source=json.dumps(where),
        profile=json.dumps(source, ensure_ascii=False),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    for file in _logged():
        if source["thumbnails"] or file not in PICTURES:
            client.log_artifact(run_id, str(file), None if file.parent in TOP else file.parent.name)


def _new_version(
    client: MlflowClient, recipe: params.Params, run_id: str, model: OnnxModel, source: dict[str, Any]
) -> ModelVersion:
    """Uploads the model first, then registers it: a version never lacks its files."""
    name, wording = recipe.register_.name, recipe.wording
    found = client.search_registered_models(f"name = '{name}'") or [client.create_registered_model(name)]
    if not found[0].description:  # else somebody's words
        classes = ", ".join(each.label for each in recipe.classes)
        client.update_registered_model(
            name, f"{wording.subject}: {classes}.\n\n{wording.intended_use}\n\n{wording.disclaimer}"
        )
    model_id = logged_model.log(client, run_id, name, model)
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
            **{tag: _md5(file) for file, tag in LOCK_TAGS.items()},
            "leukdetect.git_commit": provenance.git_commit,
            "leukdetect.data_sha256": provenance.data_sha256,
            "leukdetect.params_sha256": provenance.params_sha256,
        },
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
