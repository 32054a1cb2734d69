"""Recipes beside the demo: a folder each, with its own lock and outputs."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline import demo, presets
from pipeline.evaluation import learning_curve
from pipeline.registry import bounds, run_tags, tracking
from pipeline.stage import Problem, guard
from tests.project import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what recipes are made of."""
    shutil.copytree("presets", tmp_path / "presets")
    shutil.copy("dvc.yaml", tmp_path)
    (tmp_path / "pipeline").mkdir()
    return tmp_path


def test_a_recipe_is_made_of_a_preset_and_keeps_what_is_changed_in_it(project: Path) -> None:
    assert presets.make("all4", "ward", project) == Path("recipes/ward")
    own = project / "recipes/ward"
    assert (own / "params.yaml").read_text() == Path("presets/all4.yaml").read_text()
    assert (own / "gate.yaml").read_text() == Path("presets/gates/all4.yaml").read_text()
    for name in ("params.yaml", "gate.yaml"):
        (own / name).write_text(f"{(own / name).read_text()}# mine\n")
    (project / "dvc.yaml").write_text(f"{(project / 'dvc.yaml').read_text()}# newer\n")
    presets.make("all4", "ward", project)
    assert (own / "params.yaml").read_text().endswith("# mine\n")
    assert (own / "gate.yaml").read_text().endswith("# mine\n")
    assert (own / "dvc.yaml").read_text().endswith("# newer\n")


def test_a_recipe_has_the_projects_stages_on_the_projects_code(project: Path) -> None:
    own = project / presets.make("demo", None, project)
    shutil.copytree("pipeline", project / "pipeline", dirs_exist_ok=True)
    shutil.copytree("leukdetect", project / "leukdetect")
    theirs, ours = (yaml.safe_load((at / "dvc.yaml").read_text()) for at in (project, own))
    assert ours["plots"] == theirs["plots"]
    assert list(ours["stages"]) == list(theirs["stages"])
    code = 0
    for name, stage in ours["stages"].items():
        assert stage["cmd"] == f"PYTHONPATH=../.. {theirs['stages'][name]['cmd']}"
        for dep, original in zip(stage["deps"], theirs["stages"][name]["deps"], strict=True):
            if original.startswith(("data/", "models/", "reports/")):
                assert dep == original
            else:
                code += 1
                assert (own / dep).resolve() == (project / original).resolve()
                assert (own / dep).is_file()
        assert {**stage, "cmd": "", "deps": []} == {**theirs["stages"][name], "cmd": "", "deps": []}
    assert code > 100


def test_grouped_folds_that_were_not_trained_are_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / presets.make("demo", None, project))
    assert learning_curve.JSON.is_file()  # `evaluate` depends on it
    assert learning_curve.read("0" * 16) is None


@pytest.mark.parametrize(("preset", "name", "wrong"), [("demo", "../x", "is no name"), ("cnmc2019", None, "no bounds")])
def test_what_cannot_be_made_leaves_nothing(project: Path, preset: str, name: str | None, wrong: str) -> None:
    (project / "presets/gates/cnmc2019.yaml").unlink()
    with pytest.raises(Problem, match=wrong):
        presets.make(preset, name, project)
    assert not (project / "recipes").exists()


def test_all_recipes_of_a_project_have_one_embedded_mlflow(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project)
    assert (tracking.uri(), run_tags.own_folder()) == ("sqlite:///mlflow.db", None)
    monkeypatch.chdir(project / presets.make("demo", "ward", project))
    assert (tracking.uri(), run_tags.own_folder()) == ("sqlite:///../../mlflow.db", "ward")
    elsewhere = project / "recipes/ward/recipes/a clone"  # a project may lie in a folder of that name
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert run_tags.own_folder() is None


def test_a_recipe_is_judged_by_its_own_bounds_on_the_main_branch(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@ward")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    shutil.copy(ROOT / "gate.yaml", project)
    own = project / presets.make("all4", "ward", project)
    for command in ("init -q -b main", "add -A", "commit -q -m first"):
        subprocess.run(["git", *command.split()], check=True, cwd=project)
    for lock in (own / "dvc.lock", project / "dvc.lock"):
        lock.touch()
    monkeypatch.chdir(own)
    (own / "gate.yaml").write_text((own / "gate.yaml").read_text().replace("max_int8_drop: ", "max_int8_drop: 0"))
    judge = bounds.judge()
    assert judge.gate == bounds.read((project / "presets/gates/all4.yaml").read_text())
    assert judge.keeps == "there are changes that are not committed"
    assert any(line.startswith("+max_int8_drop: 00") for line in judge.changes)


def test_make_demo_runs_the_demo_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("it ran"))
    shutil.copy(ROOT / "presets/all4.yaml", "params.yaml")
    with pytest.raises(Problem, match=r"no longer the demo's \(fetch.source: kaggle\).* git checkout params.yaml"):
        demo.main()


# As DVC: it ignores Ctrl-C while a stage runs, and at SIGTERM it ends without it.
DVC = """
stage = subprocess.Popen(["sleep", "300"])
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path("pids").write_text(f"{os.getpid()} {stage.pid}")
sys.exit(stage.wait())
"""
SERVER = 'pathlib.Path("pids").write_text(str(os.getpid())); time.sleep(300)'


@pytest.mark.parametrize(
    ("dvc", "number", "code"),
    [(DVC, signal.SIGTERM, 143), (DVC, signal.SIGHUP, 129), (DVC, signal.SIGINT, 130), ("", signal.SIGTERM, 143)],
)
def test_a_demo_that_is_ended_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dvc: str, number: signal.Signals, code: int
) -> None:
    shutil.copy(ROOT / "presets/demo.yaml", tmp_path / "params.yaml")
    for name, text in (
        ("reports/registration.json", '{"name": "leukdetect", "alias": "champion"}'),
        ("bin/dvc", f"#!{sys.executable}\nimport os, pathlib, signal, subprocess, sys\n{dvc}"),
        (".venv-serving/bin/python", f"#!{sys.executable}\nimport os, pathlib, time\n{SERVER}"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["demo", "--port", "1"])

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `make test &` ignores it, as nohup SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        guard(demo.main)

    process = multiprocessing.get_context("fork").Process(target=run)  # it has imported everything
    process.start()
    while not Path("pids").exists() or not (pids := Path("pids").read_text().split()):
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == code
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_the_demo_and_a_recipe_have_their_own_lock_and_outputs_in_one_repository(tmp_path: Path) -> None:
    for name in ("presets", "pipeline", "leukdetect"):
        shutil.copytree(name, tmp_path / name)
    whole = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: whole[name] for name in ("outside", "fetch")}}))
    for name in ("presets/demo.yaml", "params.yaml"):
        recipe = yaml.safe_load(Path("presets/demo.yaml").read_text())
        recipe["demo"] = {"patients": 2, "images_per_patient": 2, "size": 40}
        (tmp_path / name).write_text(yaml.safe_dump(recipe))
    shutil.copy(".gitignore", tmp_path)
    own = tmp_path / presets.make("demo", "ward", tmp_path)
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)

    def run(command: str, at: Path) -> str:
        done = subprocess.run(command.split(), cwd=at, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git init -q", tmp_path)
    run("dvc init -q", tmp_path)
    run("dvc repro", tmp_path)
    lock = (tmp_path / "dvc.lock").read_bytes()
    recipe["demo"]["patients"] = 3
    (own / "params.yaml").write_text(yaml.safe_dump(recipe))
    assert "Running stage 'fetch'" in run("dvc repro", own)
    assert (tmp_path / "dvc.lock").read_bytes() == lock != (own / "dvc.lock").read_bytes()
    images = {at: len(list((at / "data/raw").rglob("*.jpg"))) for at in (tmp_path, own)}
    assert images == {tmp_path: 16, own: 24}
    for at in (tmp_path, own):
        assert "Running stage 'fetch'" not in run("dvc repro", at)
    added = run("git add -A --dry-run", tmp_path)
    assert "recipes/ward/dvc.lock" in added
    assert "data/raw" not in added
