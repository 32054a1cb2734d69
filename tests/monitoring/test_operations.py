"""docs/operations.md: what it names exists, and what it tells people to type does what it says."""

import importlib.util
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from mlflow import MlflowClient

from serving.app import ROUTERS
from serving.metrics import Metrics
from serving.request import auth
from serving.settings import Settings
from tests.monitoring.test_dashboards import DASHBOARDS
from tests.project import ROOT
from tests.registry import Registry

TEXT = Path("docs/operations.md").read_text()
ALERTS = TEXT.split("\n## Alerts\n")[1]
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line.strip()
]
ROUTES = {
    f"{method} {route.path}"
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
}


def section(heading: str) -> list[str]:
    """The commands under a heading."""
    text = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line for line in COMMANDS if line in text]


def run(command: str, folder: Path, **environment: str) -> str:
    """As somebody would type it, with this environment's Python."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", COMMANDS)
def test_what_a_command_names_exists(line: str) -> None:
    """Whatever needs more than this folder and its environments says so."""
    command, _, remark = line.partition("#")
    words = shlex.split(command)
    program = words[0]
    if program in ("curl", "docker", "kubectl", "dvc", "cp"):
        assert "needs: " in remark
    if program == "make":
        assert re.search(rf"^{words[1]}:", Path("Makefile").read_text(), re.MULTILINE)
    elif program == "curl":
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        [path] = re.findall(r"localhost:8000(/\S+)", command)
        assert f"{method} {path}" in ROUTES
    elif program.endswith("python") and words[1] == "-m":
        assert importlib.util.find_spec(words[2])
        text = subprocess.run([sys.executable, "-m", words[2], "--help"], capture_output=True, text=True).stdout
        assert all(flag in text for flag in words if flag.startswith("--"))
    elif program == "python":
        compile(words[2], "<docs>", "exec")
    for path in re.findall(r"\bdeploy/[\w/.]+\b", command):
        assert Path(path).exists(), path


def test_settings_and_metrics_exist() -> None:
    settings = {str(f.validation_alias or f"LEUKDETECT_{name.upper()}") for name, f in Settings.model_fields.items()}
    assert set(re.findall(r"\b(?:LEUKDETECT|MLFLOW)_[A-Z_]+\b", TEXT)) <= settings
    families = {f.name + ("_total" if f.type == "counter" else "") for f in Metrics().registry.collect()}
    assert set(re.findall(r"\bleukdetect_[a-z_]+\b", TEXT)) <= families


def test_endpoints_and_files_exist() -> None:
    paths = {route.split()[1] for route in ROUTES}
    assert set(re.findall(r"`(?:GET |POST )?(/[a-z]+(?:/[a-z]+)?)`", TEXT)) <= paths
    for path in re.findall(r"\b(?:docs|monitoring|deploy|mlflow)/[\w/.]+\b", TEXT):
        assert Path(path).exists(), path


def test_codes_reasons_and_log_lines_in_runbooks_are_the_servers() -> None:
    sources = [file for folder in ("leukdetect", "serving") for file in Path(folder).rglob("*.py")]
    sources += Path("monitoring").rglob("*.yml")
    code = "".join(path.read_text() for path in sources)
    for words in set(re.findall(r"`([a-z][a-z_ -]+)`", ALERTS)) - set(re.findall(r"leukdetect_[a-z_]+", ALERTS)):
        assert re.search(rf"\b{words}\b", code), words


def test_panels_that_runbooks_send_people_to_exist() -> None:
    titles = {panel["title"] for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]}
    assert set(re.findall(r'"([A-Z][^"]+)"', ALERTS)) <= titles | {"Targets"}  # Prometheus' own page


def test_what_was_backed_up_can_be_restored(tmp_path: Path, empty_database: Path) -> None:
    registry = Registry(tmp_path, empty_database)
    registry.add()
    (tmp_path / ".serving").mkdir()
    with closing(sqlite3.connect(tmp_path / ".serving/feedback.db")) as feedback, feedback:
        feedback.execute("CREATE TABLE kept (label TEXT)")
        feedback.execute("INSERT INTO kept VALUES ('pre')")
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "mlartifacts/model").write_text("a model")
    for line in section("Back up"):
        if not line.startswith("dvc"):
            run(line, tmp_path)
    (tmp_path / "mlflow.db").unlink()
    (tmp_path / ".serving/feedback.db").unlink()
    shutil.rmtree(tmp_path / "mlartifacts")
    for line in section("Restore"):
        if line.startswith("cp"):
            run(line, tmp_path)
    assert MlflowClient(registry.uri).get_model_version_by_alias("leukdetect", "champion").version
    assert (tmp_path / "mlartifacts/model").read_text() == "a model"
    with closing(sqlite3.connect(tmp_path / ".serving/feedback.db")) as feedback:
        assert feedback.execute("SELECT label FROM kept").fetchall() == [("pre",)]


def test_the_alias_moves_back_as_described(tmp_path: Path, empty_database: Path) -> None:
    registry = Registry(tmp_path, empty_database)
    registry.add()
    registry.add()
    [line] = [line for line in section("Roll back a model") if line.startswith("python -c")]
    run(line, ROOT, MLFLOW_TRACKING_URI=registry.uri)
    assert str(registry.client.get_model_version_by_alias("leukdetect", "champion").version) == "1"


def test_a_new_key_is_made_as_described(tmp_path: Path) -> None:
    [line] = section("Rotate keys")
    key = run(line.replace(".venv-serving/bin/python", "python").replace("keys.txt", str(tmp_path / "keys.txt")), ROOT)
    [entry] = auth.parse((tmp_path / "keys.txt").read_text())
    assert (entry.name, entry.role, entry.per_minute) == ("ward-7-new", "predict", 600)
    assert entry.digest == auth.digest_of(key.strip())
