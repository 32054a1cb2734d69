"""The registry as deployed, and the server fed from it; both killed, backed up, restored and upgraded."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy import serve_like_the_image as like_the_image
from pipeline import register
from pipeline.registry import tracking
from tests import tiny_model
from tests.deploy.deployed_registry import PASSWORDS, SERVICES, Deployed, running, state
from tests.pipeline import test_register as evaluated
from tests.project import ROOT

README = (ROOT / "mlflow/README.md").read_text()
DUMP = ["pg_dump", "--format=custom"]
RESTORE = ["pg_restore", "--clean", "--if-exists", "--exit-on-error", "--dbname=mlflow"]
UPGRADE = [
    ["python", "-m", "mlflow", "db", "upgrade", "postgresql:///"],
    ["python", "-m", "mlflow.server.auth", "db", "upgrade", "--url", "postgresql:///"],
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    with running() as deployed:
        yield deployed


@pytest.fixture
def project(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose model has been evaluated, of somebody with the account trainer."""
    monkeypatch.chdir(tmp_path)
    for name, value in deployed.client("trainer").items():
        monkeypatch.setenv(name, value)
    evaluated.write_recipe(mode="off", reason="what is deployed is tested, not how good it is")
    evaluated.write_data()
    evaluated.write_reports()
    return tmp_path


def register_version(bias: float) -> str:
    """As `dvc repro` does, whose first stage opens the run; returns the version, which is champion now."""
    run = tracking.run_id(register.params.load(), "0" * 64)
    evaluated.write_model(bias, provenance=evaluated.provenance(mlflow_run=run))
    register.main()
    return str(json.loads(register.REGISTRATION.read_text())["version"])


def predict(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/predict", tiny_model.jpeg((200, 60, 60))) as answer:
        result: dict[str, Any] = json.load(answer)
        return result


def wait_for(condition: Any, message: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.5)


def reachable(url: str) -> bool:
    return "leukdetect_registry_reachable 1.0" in requests.get(f"{url}/metrics", timeout=10).text


def test_models_reach_the_server_by_alias_and_kills_lose_nothing(
    deployed: Deployed, image: Path, project: Path
) -> None:
    first = register_version(evaluated.GOOD)
    before = state()
    environment = deployed.client("server") | {"LEUKDETECT_WATCH_SECONDS": "1"}
    with like_the_image.serving(image, environment) as (url, _):
        assert predict(url)["model"]["version"] == first

        deployed.kill("mlflow")
        deployed.kill("database")
        wait_for(lambda: not reachable(url), "the server did not notice that its registry is gone")
        assert predict(url)["model"]["version"] == first, "what serves goes on"

        deployed.start_database()
        deployed.start_mlflow()
        wait_for(lambda: reachable(url), "the server did not find its registry again")
        assert state() == before

        second = register_version(evaluated.BETTER)
        wait_for(lambda: predict(url)["model"]["version"] == second, "the server did not take the new champion")

    after = state()
    assert after[first] == before[first]

    deployed.kill("mlflow")
    with like_the_image.serving(image, environment) as (url, _):
        assert predict(url)["model"]["version"] == second, "a cold start without a registry serves what served last"
    deployed.start_mlflow()
    assert state() == after


def test_nobody_without_an_account_sees_anything(deployed: Deployed) -> None:
    address = f"{deployed.uri}/api/2.0/mlflow/registered-models/search"
    assert requests.get(address, timeout=10).status_code == 401
    assert requests.get(address, auth=("server", "wrong"), timeout=10).status_code == 401
    assert requests.get(address, auth=("server", PASSWORDS["server"]), timeout=10).ok


def test_the_servers_account_reads_and_changes_nothing(deployed: Deployed, project: Path) -> None:
    version = register_version(evaluated.GOOD)
    address = f"{deployed.uri}/api/2.0/mlflow/registered-models/alias"
    body = {"name": "leukdetect", "alias": "champion", "version": version}
    assert requests.post(address, json=body, auth=("server", PASSWORDS["server"]), timeout=10).status_code == 403
    assert requests.post(address, json=body, auth=("trainer", PASSWORDS["trainer"]), timeout=10).ok


def test_making_the_accounts_again_changes_nothing_but_the_password(deployed: Deployed) -> None:
    deployed.make_accounts()
    assert deployed.sql("SELECT count(*) FROM users WHERE username = 'server'") == "1"


def test_a_name_that_was_not_allowed_is_refused(deployed: Deployed) -> None:
    address = f"{deployed.uri}/health"
    allowed = SERVICES["registry"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")[0]
    search = f"{deployed.uri}/api/2.0/mlflow/registered-models/search"
    account = ("server", PASSWORDS["server"])
    assert requests.get(address, timeout=10).ok
    assert requests.get(search, headers={"Host": allowed}, auth=account, timeout=10).ok
    assert requests.get(search, headers={"Host": "elsewhere.example"}, auth=account, timeout=10).status_code == 403


def test_a_backup_brings_everything_back(deployed: Deployed, project: Path) -> None:
    assert " ".join(DUMP) in README
    assert " ".join(RESTORE) in README
    register_version(evaluated.GOOD)
    before = state()
    deployed.run(*DUMP, "--file=registry.dump")
    objects = {item.key: item.get()["Body"].read() for item in deployed.objects.objects.all()}
    assert objects

    deployed.kill("mlflow")
    deployed.sql("DROP SCHEMA public CASCADE")
    deployed.sql("CREATE SCHEMA public")
    deployed.objects.objects.all().delete()

    deployed.run(*RESTORE, "registry.dump")
    for key, body in objects.items():
        deployed.objects.put_object(Key=key, Body=body)
    deployed.start_mlflow()
    assert state() == before
    assert requests.get(
        f"{deployed.uri}/api/2.0/mlflow/registered-models/search", auth=("server", PASSWORDS["server"]), timeout=10
    ).ok, "accounts are part of it"


def test_an_upgrade_of_the_database_loses_nothing(deployed: Deployed, project: Path) -> None:
    register_version(evaluated.GOOD)
    before = state()
    deployed.kill("mlflow")
    for command in UPGRADE:
        assert " ".join(command[1:]) in README
        deployed.run(*command)
    deployed.start_mlflow()
    assert state() == before
