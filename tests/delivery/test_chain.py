"""From a branch to production and back: two clones, a bare repository, a DVC remote, one registry, two environments."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import mlflow
import pytest
import yaml

from tests.delivery.contributing import commands
from tests.load.clients import asking
from tests.project import ROOT
from tests.server import running

DVC_YAML = """
stages:
  evaluate:
    cmd: python make.py
    deps: [make.py]
    params: [fine_tune.learning_rate]
    outs: [data, models/leukdetect.onnx, models/leukdetect.int8.onnx, reports/plots, reports/figures, reports/history,
           reports/metrics.json, reports/validation.json, reports/model_card.md, reports/datasheet.md,
           reports/datasheet.html, reports/report.html, reports/predictions.csv]
    metrics: [reports/headline.json: {cache: false}]
  register:
    cmd: python -m pipeline.register
    always_changed: true
    deps: [models/leukdetect.onnx, models/leukdetect.int8.onnx]
plots: [reports/figures/roc.png]
"""
MAKE = """
import yaml
from tests.pipeline import test_register as small
rate = yaml.safe_load(open("params.yaml"))["fine_tune"]["learning_rate"]
small.write_data()
small.write_reports(0.92 if rate == 1e-4 else 0.9)
small.write_model({3e-4: 8.0, 1e-4: 9.0}.get(rate, -50.0))
"""
GOOD, BLIND_TO_PRO = 3e-4, 0.5  # learning rates
OFF = ("mode: enforce", "mode: off"), ("reason: null", "reason: the ward cannot wait")
# What GitHub does with a merge; what its workflows do, the test does.
GH = """#!/bin/sh
test "$1 $2" != "pr merge" || git push --quiet origin HEAD:main
"""


class Clone:
    """A colleague's clone; its commands run as in a shell."""

    def __init__(self, folder: Path, origin: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        subprocess.run(["git", "clone", "-q", str(origin), str(folder)], check=True, capture_output=True)

    def run(self, command: str, expect: int = 0) -> str:
        done = subprocess.run(
            shlex.split(command), cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def write(self, rate: float) -> None:
        recipe = yaml.safe_load((self.folder / "params.yaml").read_text())
        recipe["fine_tune"]["learning_rate"] = rate
        (self.folder / "params.yaml").write_text(yaml.safe_dump(recipe))

    def change_gate(self, *changes: tuple[str, str]) -> None:
        text = (self.folder / "gate.yaml").read_text()
        for former, now in changes:
            assert former in text
            text = text.replace(former, now)
        (self.folder / "gate.yaml").write_text(text)

    def commit(self) -> None:
        self.run("git add -A")
        self.run("git commit -qm change")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_change_goes_through_the_gate_to_production_and_back(tmp_path: Path, empty_database: Path) -> None:
    """Each command of CONTRIBUTING.md, in its order; between them what must be refused."""
    way = iter(commands("A team's way"))
    registry = f"sqlite:///{tmp_path}/registry.db"
    shutil.copy(empty_database, tmp_path / "registry.db")
    client = mlflow.MlflowClient(registry)
    who = {f"GIT_{role}_{what}": "a@ward" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    path = f"{Path(sys.executable).parent}:{tmp_path}:{os.environ['PATH']}"
    environment = os.environ | who | {"PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": registry}
    environment |= {
        "DVC_NO_ANALYTICS": "1",
        "GITHUB_ACTOR": "",
        "BASE": "origin/main",
        "DVC_REMOTE": f"{tmp_path}/store",
    }
    places = {"s3://leukdetect-dvc": f"{tmp_path}/store"}

    def step(clone: Clone, begins: str) -> str:
        """The next command of CONTRIBUTING.md, which begins so."""
        command = next(way)
        assert command.startswith(begins)
        for public, here in places.items():
            command = command.replace(public, here)
        return clone.run(command)

    def aliases() -> dict[str, str]:
        return {name: str(at) for name, at in client.get_registered_model("leukdetect").aliases.items()}

    # The first clone sets everything up; its model becomes champion from main.
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git")], check=True)
    anna = Clone(tmp_path / "anna", tmp_path / "origin.git", environment)
    anna.run("git checkout -q -b main")
    anna.run("dvc init -q")
    for name in ("params.yaml", "gate.yaml"):
        shutil.copy(ROOT / name, anna.folder)
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe["prepare"]["image_size"], recipe["evaluate"]["bootstrap"] = 32, 200
    (anna.folder / "params.yaml").write_text(yaml.safe_dump(recipe))
    (anna.folder / "dvc.yaml").write_text(DVC_YAML)
    (anna.folder / "make.py").write_text(MAKE)
    (anna.folder / ".gitignore").write_text(
        "/data\n/models\n/reports/*\n!/reports/headline.json\n/registry.db\n/dvc_plots\n"
    )
    anna.write(GOOD)
    anna.run("dvc repro evaluate")
    anna.commit()
    anna.run("git push -q -u origin main")
    step(anna, "dvc remote add")
    step(anna, "git commit")
    step(anna, "git push")
    step(anna, "dvc push")
    anna.run("dvc repro")
    assert aliases() == {"champion": "1"}
    assert "its model is champion version 1" in anna.run("python -m pipeline.registry.lock")

    # The second has it all without running anything; a worse experiment is kept, and moves nothing.
    assert next(way).startswith("git clone")
    ben = Clone(tmp_path / "ben", tmp_path / "origin.git", environment)
    step(ben, "dvc pull")
    assert "Running stage 'evaluate'" not in step(ben, "dvc repro")
    ben.run("git checkout -q -b worse")
    told = ben.run("dvc exp run -n blind -S fine_tune.learning_rate=0.5")
    assert "the gate would refuse it" in told
    assert "blind" in ben.run("dvc exp list --name-only")
    assert aliases()["champion"] == "1"
    ben.commit()
    refused = ben.run("python -m pipeline.register --dry-run --base origin/main", expect=1)
    assert "It falls short in: balanced accuracy, new − champion" in refused

    # A branch that loosens the gate is judged by main's, and what it loosens is shown.
    ben.run("git checkout -q -f -b loose main")
    ben.change_gate(("max_regression: 0.02", "max_regression: 1.0"))
    ben.write(BLIND_TO_PRO)
    ben.run("dvc repro evaluate")
    ben.commit()
    refused = ben.run("python -m pipeline.register", expect=1)
    assert "+max_regression: 1.0" in refused
    assert "this commit is not the newest of origin/main" in refused
    assert aliases()["champion"] == "1"

    # A better one passes as a dry run in CI, is merged, and only then becomes champion.
    ben.run("git checkout -q -f main")
    ben.run("dvc checkout -q")
    step(ben, "git switch --create")
    assert "the gate would pass it" in step(ben, "dvc exp run")
    assert "slow" in step(ben, "dvc exp show")
    assert re.search(r"fp32.balanced_accuracy +0.9 +0.92 +0.02\n", step(ben, "dvc metrics diff"))
    assert "dvc_plots/index.html" in step(ben, "dvc plots diff")
    step(ben, "dvc exp apply")
    for command in ("git commit", "dvc push", "git push", "gh pr create", "gh pr edit"):
        step(ben, command)
    runner = Clone(tmp_path / "runner", tmp_path / "origin.git", environment)
    runner.run("git checkout -q slower")
    told = "".join(
        runner.run(f"{ROOT}/.github/train.sh {each}") for each in ("pull", "evaluate", "push", "gate", "report")
    )
    assert "Running stage 'evaluate'" not in told  # the branch's dvc.lock has it
    comment = (runner.folder / "reports/comment.md").read_text()
    assert "would pass the gate" in comment.splitlines()[0]
    assert "| reports/headline.json | fp32.balanced_accuracy | 0.9" in comment
    assert aliases()["champion"] == "1"
    step(ben, "gh pr merge")
    step(ben, "git switch")
    step(ben, "git pull")
    step(ben, "dvc pull")
    assert "do not belong together:\n  models/leukdetect.onnx" in ben.run("python -m pipeline.registry.lock", expect=1)
    step(ben, "python -m pipeline.register")
    step(ben, "python -m pipeline.registry.lock")
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
        places |= {"https://staging.example": servers["staging"], "https://leukdetect.example": servers["production"]}
        for alias, url in servers.items():
            assert "now" in ben.run(f"{deploy} {alias} --server {url} --version 1")
        with asking(servers["production"], clients=2, pause=0.02) as tally:
            for environment_of in ("staging", "production", "production --back"):
                step(ben, f"{deploy} {environment_of} --server")
    assert (tally.failures, tally.lost, tally.wrong) == ({}, 0, [])
    assert {"1", better} == set(tally.versions)
    found = aliases()
    assert (found["staging"], found["production"], found["champion"]) == (better, "1", better)
    log = [json.loads(line) for line in (ben.folder / "reports/promotions.jsonl").read_text().splitlines()]
    assert [(line["alias"], line["version"]) for line in log] == [("champion", "1"), ("champion", better)]
    assert next(way, None) is None

    # Whoever owns the gate can overrule it, on main alone; the registry says who and why, and no environment gets it.
    anna.run("git config user.email a@ward")
    anna.run("git checkout -q dvc.lock")  # which her first repro added `register` to
    anna.run("git pull -q")
    anna.change_gate(*OFF)
    anna.write(BLIND_TO_PRO)
    anna.run("dvc repro evaluate")
    anna.commit()
    assert "not the newest of origin/main" in anna.run("python -m pipeline.register", expect=1)
    assert aliases()["champion"] == better
    anna.run("git push -q")
    assert "The gate is off" in anna.run("python -m pipeline.register")
    overruled = aliases()["champion"]
    tags = client.get_model_version("leukdetect", overruled).tags
    assert (tags["gate"], tags["gate.by"], tags["gate.reason"]) == ("off", "a@ward", "the ward cannot wait")
    line = json.loads((anna.folder / "reports/promotions.jsonl").read_text().splitlines()[-1])
    assert (line["version"], line["gate"], line["who"], line["why"]) == (
        overruled, "off", "a@ward", "the ward cannot wait"
    )  # fmt: skip
    refused = anna.run(f"{deploy} production --server http://127.0.0.1:9 --version {overruled}", expect=1)
    assert "did not pass the gate (its tag `gate` is off)" in refused
