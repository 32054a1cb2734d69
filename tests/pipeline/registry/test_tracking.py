"""One MLflow run a pass, found again without being handed on, and a server that is down found in seconds."""

import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import mlflow
import pytest
import yaml

from pipeline import params
from pipeline.registry import run_tags, tracking
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
    assert data.tags["mlflow.runName"] == f"demo: ResNet50 64px none, {params.digest(recipe)[:7]}"
    assert data.tags["mlflow.source.name"] == "dvc.yaml"
    assert "mlflow.source.git.commit" not in data.tags


@pytest.fixture
def cloned(here: Path, recipe: params.Params, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same under git, on a branch beside main, where the recipe was committed."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@ward")
    shutil.copy(ROOT / "params.yaml", here)
    (here / "code.py").touch()
    for command in (
        "init -q -b main", "config user.email ada@ward", "add params.yaml code.py", "commit -q -m first",
        "checkout -q -b try", "remote add origin https://ada:secret@git.example/ward",
    ):  # fmt: skip
        subprocess.run(["git", *command.split()], check=True)
    return here


def test_mlflows_columns_name_source_commit_branch_and_person(
    cloned: Path, recipe: params.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTOR", raising=False)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def tags(recipe: params.Params) -> dict[str, str]:
        found = tracking.client().get_run(tracking.run_id(recipe, DATA)).data.tags
        return {name.removeprefix("mlflow."): value for name, value in found.items() if name.startswith("mlflow.")}

    digest = params.digest(recipe)[:7]
    assert tags(recipe) == {
        "runName": f"demo: ResNet50 64px none, {digest}", "user": "ada@ward",
        "source.type": "LOCAL", "source.name": "dvc.yaml", "source.git.branch": "try", "source.git.commit": head,
        "source.git.dirty": "false", "source.git.repoURL": "https://git.example/ward",
    }  # fmt: skip
    (cloned / "code.py").write_text("1")
    found = tags(changed("fine_tune", "learning_rate", 0.0001))
    assert (found["source.git.commit"], found["source.git.dirty"]) == (head, "true")


def test_a_runs_name_says_what_differs_and_which_experiment_it_is(
    cloned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = changed("fine_tune", "learning_rate", 0.0001)
    digest = params.digest(one)[:7]
    assert run_tags.name(one) == f"demo: fine_tune.learning_rate=0.0001, ResNet50 64px none, {digest}"
    monkeypatch.setenv("DVC_EXP_NAME", "sunny-mole")
    assert run_tags.name(one).startswith("demo (sunny-mole): fine_tune.learning_rate=0.0001, ResNet50 ")
    assert tracking.client().get_run(tracking.run_id(one, DATA)).data.tags[run_tags.EXPERIMENT] == "sunny-mole"
    many = changed("fetch", "leave_out", ["a" * 100]).model_dump(mode="json", by_alias=True)
    many |= {"seed": 1, "model": many["model"] | {"backbone": "VGG16"}}
    many["augment"]["rotation"] = 0
    name = run_tags.name(params.parse(many))
    assert name.startswith('demo (sunny-mole): seed=1, fetch.leave_out=["aaaa')
    assert ", 1 more, VGG16 64px none, " in name
    assert len(name) < 250
    own = cloned / "recipes/ward"
    own.mkdir(parents=True)
    (cloned / "pipeline").mkdir()
    monkeypatch.chdir(own)
    assert run_tags.name(one).startswith("ward (sunny-mole): ResNet50 64px none, ")


def test_a_run_that_a_killed_pass_left_is_ended_by_the_next(here: Path, recipe: params.Params) -> None:
    left = tracking.run_id(changed("fine_tune", "epochs", 4), DATA)
    store = tracking.client()
    elsewhere = store.create_run("1", tags={run_tags.PLACE: "another machine's"}).info.run_id
    now = tracking.run_id(recipe, DATA)
    status = {run.info.run_id: run.info.status for run in store.search_runs(["1"])}
    assert status == {left: "KILLED", elsewhere: "RUNNING", now: "RUNNING"}


def test_system_metrics_are_in_the_run_of_what_they_are_of(
    here: Path, recipe: params.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    run = tracking.run_id(recipe, DATA)
    before = threading.active_count()

    def steps() -> list[int]:
        points = tracking.client().get_metric_history(run, "system/cpu_utilization_percentage")
        return sorted(point.step for point in points)

    for _ in ("train_head", "fine_tune"):
        former = len(steps())
        with tracking.system_metrics(run):
            deadline = time.monotonic() + 20
            while len(steps()) == former and time.monotonic() < deadline:
                time.sleep(0.05)
    assert steps() == list(range(len(steps())))
    assert {"system/system_memory_usage_percentage", "system/disk_usage_percentage"} <= set(
        tracking.client().get_run(run).data.metrics
    )
    assert threading.active_count() == before
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracking.system_metrics("no such run"):
        pass


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
