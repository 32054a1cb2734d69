"""From a branch to production and back: two clones, a bare repository, a DVC remote, one registry, two environments."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import mlflow
import pytest
import yaml

from tests.load.clients import asking
from tests.project import ROOT
from tests.server import running

DVC_YAML = """
stages:
  evaluate:
    cmd: python make.py
    deps: [make.py]
    params: [model.yaml: [bias, accuracy]]
    outs: [data, models/leukdetect.onnx, models/leukdetect.int8.onnx, reports/plots, reports/figures, reports/history]
  register:
    cmd: python -m pipeline.register
    always_changed: true
    deps: [models/leukdetect.onnx, models/leukdetect.int8.onnx]
"""
MAKE = """
import yaml
from tests.pipeline import test_register as small
wanted = yaml.safe_load(open("model.yaml"))
small.write_data()
small.write_reports(wanted["accuracy"])
small.write_model(wanted["bias"])
"""
GOOD, BETTER, BLIND_TO_PRO = ({"bias": bias, "accuracy": 0.9} for bias in (8.0, 9.0, -50.0))


class Clone:
    """A colleague's clone; its commands run as in a shell."""

    def __init__(self, folder: Path, origin: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        subprocess.run(["git", "clone", "-q", str(origin), str(folder)], check=True, capture_output=True)

    def run(self, command: str, expect: int = 0) -> str:
        done = subprocess.run(
            command.split(), cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def write(self, model: dict[str, float]) -> None:
        (self.folder / "model.yaml").write_text(yaml.safe_dump(model))

    def commit(self) -> None:
        self.run("git add -A")
        self.run("git commit -qm change")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_change_goes_through_the_gate_to_production_and_back(tmp_path: Path, empty_database: Path) -> None:
    registry = f"sqlite:///{tmp_path}/registry.db"
    shutil.copy(empty_database, tmp_path / "registry.db")
    client = mlflow.MlflowClient(registry)
    who = {f"GIT_{role}_{what}": "a@ward" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = os.environ | who | paths | {"MLFLOW_TRACKING_URI": registry, "DVC_NO_ANALYTICS": "1"}

    def aliases() -> dict[str, str]:
        return {name: str(at) for name, at in client.get_registered_model("leukdetect").aliases.items()}

    # The first clone sets everything up; its model becomes champion from main.
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git")], check=True)
    anna = Clone(tmp_path / "anna", tmp_path / "origin.git", environment)
    anna.run("git checkout -q -b main")
    anna.run("dvc init -q")
    anna.run(f"dvc remote add -q --default store {tmp_path}/store")
    for name in ("params.yaml", "gate.yaml"):
        shutil.copy(ROOT / name, anna.folder)
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe["prepare"]["image_size"], recipe["evaluate"]["bootstrap"] = 32, 200
    (anna.folder / "params.yaml").write_text(yaml.safe_dump(recipe))
    (anna.folder / "dvc.yaml").write_text(DVC_YAML)
    (anna.folder / "make.py").write_text(MAKE)
    (anna.folder / ".gitignore").write_text("/data\n/models\n/reports\n/registry.db\n")
    anna.write(GOOD)
    anna.run("dvc repro evaluate")
    anna.commit()
    anna.run("git push -q -u origin main")
    anna.run("dvc push -q")
    anna.run("dvc repro")
    assert aliases() == {"champion": "1"}
    assert "its model is champion version 1" in anna.run("python -m pipeline.registry.lock")

    # The second has it all without running anything; a worse experiment is kept, and moves nothing.
    ben = Clone(tmp_path / "ben", tmp_path / "origin.git", environment)
    ben.run("dvc pull -q")
    shutil.copytree(anna.folder / "reports", ben.folder / "reports", dirs_exist_ok=True)
    assert "up to date" in ben.run("dvc repro evaluate")
    ben.run("git checkout -q -b worse")
    told = ben.run("dvc exp run -n blind -S model.yaml:bias=-50")
    assert "the gate would refuse it" in told
    assert "blind" in ben.run("dvc exp list --name-only")
    assert aliases()["champion"] == "1"
    ben.commit()
    refused = ben.run("python -m pipeline.register --dry-run --base origin/main", expect=1)
    assert "It falls short in: balanced accuracy, new − champion" in refused

    # A branch that loosens the gate is judged by main's, and what it loosens is shown.
    ben.run("git checkout -q -f -b loose main")
    loose = (ben.folder / "gate.yaml").read_text().replace("max_regression: 0.02", "max_regression: 1.0")
    assert loose != (ROOT / "gate.yaml").read_text()
    (ben.folder / "gate.yaml").write_text(loose)
    ben.write(BLIND_TO_PRO)
    ben.run("dvc repro evaluate")
    ben.commit()
    refused = ben.run("python -m pipeline.register", expect=1)
    assert "+max_regression: 1.0" in refused
    assert "this commit is not the newest of origin/main" in refused
    assert aliases()["champion"] == "1"

    # A better one passes as a dry run, is merged, and only then becomes champion.
    ben.run("git checkout -q -f -b better main")
    ben.write(BETTER)
    ben.run("dvc repro evaluate")
    ben.commit()
    assert "the gate would pass it" in ben.run("python -m pipeline.register --dry-run --base origin/main")
    assert aliases()["champion"] == "1"
    ben.run("dvc push -q")
    ben.run("git push -q origin better:main")
    ben.run("git fetch -q")
    assert "do not belong together:\n  models/leukdetect.onnx" in ben.run("python -m pipeline.registry.lock", expect=1)
    ben.run("dvc repro")
    ben.run("python -m pipeline.registry.lock")
    better = json.loads((ben.folder / "reports/registration.json").read_text())["version"]
    assert aliases()["champion"] == better != "1"

    # Two bare environments, staging and then production; going back loses no request.
    deploy = "python -m pipeline.deploy"
    with ExitStack() as stack:
        servers = {}
        for alias in ("staging", "production"):
            (tmp_path / alias).mkdir()
            flags = ("--model", f"models:/leukdetect@{alias}", "--tracking-uri", registry, "--watch-seconds", "0.5")
            started = running(tmp_path / alias, *flags, "--deadline-ms", "30000", probe="/livez")
            servers[alias] = stack.enter_context(started).url
        for alias, url in servers.items():
            assert "now" in ben.run(f"{deploy} {alias} --server {url} --version 1")
        with asking(servers["production"], clients=2, pause=0.02) as tally:
            for alias, url in servers.items():
                ben.run(f"{deploy} {alias} --server {url}")
            ben.run(f"{deploy} production --back --server {servers['production']}")
    assert (tally.failures, tally.lost, tally.wrong) == ({}, 0, [])
    assert {"1", better} == set(tally.versions)
    found = aliases()
    assert (found["staging"], found["production"], found["champion"]) == (better, "1", better)
    log = [json.loads(line) for line in (ben.folder / "reports/promotions.jsonl").read_text().splitlines()]
    assert [(line["alias"], line["version"]) for line in log] == [("champion", "1"), ("champion", better)]
