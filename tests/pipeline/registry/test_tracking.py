"""One MLflow run a pass, found again without being handed on, and a server that is down found in seconds."""

import shutil
import socket
import time
from pathlib import Path

import mlflow
import pytest
import yaml

from pipeline import params
from pipeline.registry import tracking
from pipeline.stage import Problem
from tests.project import ROOT

DATA = "d" * 64


@pytest.fixture
def here(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with an embedded MLflow."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@pytest.fixture
def recipe() -> params.Params:
    return params.load(ROOT / "params.yaml")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def changed(section: str, key: str, value: object) -> params.Params:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw[section][key] = value
    return params.parse(raw)


def history(run_id: str, name: str) -> dict[int, float]:
    points = tracking.client().get_metric_history(run_id, name)
    assert len({point.step for point in points}) == len(points), "an epoch was logged twice"
    return {point.step: point.value for point in points}


def test_the_imported_mlflow_is_the_library_and_not_the_folder_of_that_name() -> None:
    assert "site-packages" in str(mlflow.__file__)


def test_every_stage_of_a_pass_finds_the_same_run_until_it_is_finished(here: Path, recipe: params.Params) -> None:
    first = tracking.run_id(recipe, DATA)
    assert tracking.run_id(recipe, DATA) == first
    tracking.client().set_terminated(first)
    assert tracking.run_id(recipe, DATA) != first


def test_other_data_or_another_recipe_is_another_run(here: Path, recipe: params.Params) -> None:
    run = tracking.run_id(recipe, DATA)
    assert tracking.run_id(recipe, "e" * 64) != run
    assert tracking.run_id(changed("fine_tune", "epochs", 4), DATA) != run


def test_a_run_says_what_made_it(here: Path, recipe: params.Params) -> None:
    data = tracking.client().get_run(tracking.run_id(recipe, DATA)).data
    assert data.params["fine_tune.learning_rate"] == "0.0003"
    assert data.params["prepare.fractions.test"] == "0.2"
    assert data.params["features.weights"] == "none"
    assert '"key": "benign"' in data.params["classes"]
    assert data.tags["leukdetect.data_sha256"] == DATA
    assert data.tags["leukdetect.params_sha256"] == params.digest(recipe)
    assert data.tags["leukdetect.git_commit"] == "unknown"
    assert data.tags["mlflow.runName"].startswith("demo-64px-none-")


def test_the_embedded_mlflow_keeps_artifacts_in_this_folder(here: Path, recipe: params.Params) -> None:
    run = tracking.client().get_run(tracking.run_id(recipe, DATA))
    assert run.info.artifact_uri.startswith((here / "mlartifacts").as_uri())


def test_a_very_long_parameter_is_cut_and_not_refused(here: Path) -> None:
    run = tracking.run_id(changed("fetch", "folder", "x" * 10_000), DATA)
    assert tracking.client().get_run(run).data.params["fetch.folder"] == "x" * 6000


def test_replay_logs_only_the_epochs_that_are_missing(here: Path, recipe: params.Params) -> None:
    run = tracking.run_id(recipe, DATA)
    tracking.log_epoch(run, "train_head", 0, {"loss": 1.5, "accuracy": 0.25})
    tracking.log_epoch(run, "train_head", 1, {"loss": 1.25})
    csv = here / "train_head.csv"
    csv.write_text("epoch,loss,accuracy\n0,9,9\n1,9,0.5\n2,1.0,0.75\n3,0.5,\n")
    for _ in range(2):
        tracking.replay(run, "train_head", csv)
    assert history(run, "train_head/loss") == {0: 1.5, 1: 1.25, 2: 1.0, 3: 0.5}
    assert history(run, "train_head/accuracy") == {0: 0.25, 1: 0.5, 2: 0.75}


def test_a_metric_is_logged_anew_only_when_it_changed(here: Path, recipe: params.Params) -> None:
    run = tracking.run_id(recipe, DATA)
    for ece in (0.1, 0.1, 0.2):
        tracking.log_new(run, {"fp32/ece/value": ece, "auroc": float("nan")})
    points = tracking.client().get_metric_history(run, "fp32/ece/value")
    assert [point.value for point in points] == [0.1, 0.2]
    assert len(tracking.client().get_metric_history(run, "auroc")) == 1


def test_a_dead_server_is_found_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://someone:secret@127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    start = time.monotonic()
    with pytest.raises(
        Problem, match=r"MLflow at http://127\.0\.0\.1:\d+ could not be used: Connection refused\n"
    ) as caught:
        tracking.check()
    assert time.monotonic() - start < 10
    assert "MLFLOW_TRACKING_URI" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_accepts_and_says_nothing_is_found_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "HEALTH_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Problem, match="timed out"):
            tracking.check()


def test_a_database_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/absent/mlflow.db")
    with pytest.raises(Problem, match=r"absent/mlflow\.db cannot be written .* MLFLOW_TRACKING_URI"):
        tracking.check()


def test_a_database_that_is_none_is_one_message(
    here: Path, recipe: params.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "other.db").write_text("not a database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/other.db")
    with pytest.raises(Problem, match=r"other\.db could not be used: .* file is not a database"):
        tracking.run_id(recipe, DATA)


def test_the_embedded_mlflow_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.uri() == "sqlite:///mlflow.db"
    tracking.check()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_dies_while_training_costs_one_warning_and_nothing_else(
    here: Path, recipe: params.Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracking.run_id(recipe, DATA)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the real three take 14 seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    for epoch in (1, 2):
        tracking.log_epoch(run, "fine_tune", epoch, {"loss": 0.5})
    output = capsys.readouterr()
    assert output.err.count("warning: MLflow at http://127.0.0.1") == 1
    assert output.out == ""
    (here / "fine_tune.csv").write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(Problem, match="goes on where it was"):
        tracking.replay(run, "fine_tune", here / "fine_tune.csv")
