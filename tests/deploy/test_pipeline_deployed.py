"""The whole pipeline against the registry as deployed, and the server fed from it; each killed on the way."""

import json
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
import requests

from tests.conftest import require
from tests.deploy.deployed_registry import Deployed, running, state
from tests.project import ROOT, TINY, Project
from tests.server import running as serving

SERVER_PYTHON = ROOT / ".venv-serving/bin/python"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    with running() as deployed:
        yield deployed


def kill(deployed: Deployed) -> None:
    """The registry and its database, without warning; the object store is a stand-in that keeps nothing on disk."""
    deployed.kill("mlflow")
    deployed.kill("database")


def start(deployed: Deployed) -> None:
    deployed.start_database()
    deployed.start_mlflow()


def predict(url: str, image: bytes) -> dict[str, Any]:
    answer = requests.post(f"{url}/predict", data=image, timeout=30)
    assert answer.ok, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_kills_between_the_stages_and_before_the_clients_lose_nothing(
    deployed: Deployed, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(SERVER_PYTHON.is_file(), f"no {SERVER_PYTHON}: `make .venv-serving/.ready` makes it")
    trainer = deployed.client("trainer")
    for name, value in trainer.items():
        monkeypatch.setenv(name, value)
    small = TINY | {"model": {"backbone": "ResNet50"}}  # the demo's own
    project = Project(tmp_path_factory.mktemp("project"), "demo", small, seed=88, environment=trainer)
    for stage in ("train_head", "evaluate", "register"):
        project.dvc("repro", stage)
        kill(deployed)
        start(deployed)

    registration = json.loads((project.root / "reports/registration.json").read_text())
    version = str(registration["version"])
    assert not (project.root / "mlflow.db").exists(), "nothing went anywhere else"
    client = mlflow.MlflowClient(deployed.uri)
    experiment = client.get_experiment_by_name("leukdetect")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])  # one pass, one run, whatever died meanwhile
    assert run.info.status == "FINISHED"
    for phase in ("train_head", "fine_tune"):
        logged = client.get_metric_history(run.info.run_id, f"{phase}/val_loss")
        assert len(logged) == TINY[phase]["epochs"]
    before = state()
    assert before["aliases"] == {"champion": version}
    assert before[version]["metrics"]
    assert before[version]["artifacts"]

    # From here on as an environment of its own has it: the alias that deployments move.
    client.set_registered_model_alias("leukdetect", "production", version)
    before["aliases"]["production"] = version
    monkeypatch.setenv("LEUKDETECT_MODEL", "models:/leukdetect@production")
    for name, value in deployed.client("server").items():
        monkeypatch.setenv(name, value)
    rows = (project.root / "data/prepared/split.csv").read_text().splitlines()
    held_out = next(row.split(",")[0] for row in rows if row.endswith(",test"))
    image = (project.root / "data/raw" / held_out).read_bytes()

    answers = []
    for number in range(2):  # each time with an empty cache: the registry has to hand out everything again
        folder = tmp_path_factory.mktemp(f"server-{number}")
        with serving(folder, python=SERVER_PYTHON) as server:
            answers.append(predict(server.url, image))
            kill(deployed)
            assert predict(server.url, image)["model"] == answers[-1]["model"], "what serves goes on"
            server.process.kill()
            server.process.wait()
        with serving(folder, python=SERVER_PYTHON) as server:
            assert predict(server.url, image)["model"]["version"] == version, "a start without a registry"
        start(deployed)
    assert {answer["model"]["version"] for answer in answers} == {version}
    assert answers[0]["model"] == answers[1]["model"]
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=1e-6)

    for name, value in trainer.items():
        monkeypatch.setenv(name, value)
    assert state() == before
    deploy = [*("python", "-m", "pipeline.deploy", "production"), *("--version", version)]
    with serving(folder, python=SERVER_PYTHON) as server:
        done = project.run(*deploy, "--server", server.url)
    assert done.returncode == 0, done.stderr
    assert f"production is version {version} now" in done.stdout
