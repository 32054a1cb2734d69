"""gate.yaml: whose judges a tree, and which tree may become champion."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.registry import bounds, git
from pipeline.stage import Problem
from tests.pipeline.registry.test_git import run
from tests.project import ROOT

DEMO = (ROOT / "presets/gates/demo.yaml").read_text()
LOOSE = DEMO.replace("max_ece: 0.15", "max_ece: 0.95")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A colleague's clone of a repository whose main branch has the demo's bounds."""
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    run("init", "-q", "--bare", "-b", "main", str(origin))
    run("clone", "-q", str(origin), str(clone))
    monkeypatch.chdir(clone)
    run("checkout", "-q", "-b", "main")
    commit(DEMO)
    run("push", "-q", "-u", "origin", "main")
    return clone


def commit(gate: str) -> None:
    Path("gate.yaml").write_text(gate)
    run("add", "-A")
    run("commit", "-q", "--allow-empty", "-m", "a change")


def test_the_main_branchs_newest_commit_may_become_champion(clone: Path) -> None:
    assert bounds.judge() == bounds.Judge(bounds.load(), "", [])
    run("checkout", "-q", "--detach")  # as a workflow has it
    assert bounds.judge().keeps == ""


def on_a_branch() -> None:
    run("checkout", "-q", "-b", "loose")
    commit(LOOSE)


def on_a_main_of_its_own() -> None:
    commit(LOOSE)


def uncommitted() -> None:
    Path("gate.yaml").write_text(LOOSE)


@pytest.mark.parametrize(
    ("change", "keeps"),
    [
        (on_a_branch, "this commit is not the newest of origin/main"),
        (on_a_main_of_its_own, "this commit is not the newest of origin/main"),
        (uncommitted, "there are changes that are not committed"),
    ],
)
def test_a_change_is_judged_by_the_bounds_before_it_and_what_it_changes_is_shown(
    clone: Path, change: Callable[[], None], keeps: str
) -> None:
    change()
    found = bounds.judge()
    assert found.gate.fp32.max_ece.bound == 0.15
    assert bounds.load().fp32.max_ece.bound == 0.95
    assert found.keeps == keeps
    shown = [line.split("#")[0].strip() for line in found.changes]
    assert shown.count("-  max_ece: 0.15") == shown.count("+  max_ece: 0.95") == 2
    assert bounds.judge("origin/main") == found  # as a pull request has it


def test_naming_another_base_makes_nobody_champion(clone: Path) -> None:
    on_a_branch()
    assert bounds.judge("HEAD").keeps == "this commit is not the newest of origin/main"


def test_once_it_is_merged_it_judges(clone: Path) -> None:
    on_a_branch()
    run("push", "-q", "origin", "HEAD:main")
    assert bounds.judge() == bounds.Judge(bounds.read(LOOSE), "", [])
    run("checkout", "-q", "main")  # behind now
    assert bounds.judge().keeps == "this commit is not the newest of origin/main"


def test_an_experiment_makes_nobody_champion(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-newt")
    assert bounds.judge().keeps == "it is the experiment brave-newt"


def test_a_base_without_bounds_judges_nothing(clone: Path) -> None:
    with pytest.raises(Problem, match=r"no-such has no gate\.yaml to judge by"):
        bounds.judge("no-such")
    run("rm", "-q", "gate.yaml")
    run("commit", "-qm", "none")
    run("push", "-q")
    Path("gate.yaml").write_text(DEMO)
    assert bounds.judge().keeps == "there is no main branch with a gate.yaml to judge by"


def test_where_git_refuses_to_answer_nothing_is_judged(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is not the checkout's owner: no reason to take the tree for nobody's."""

    def refuse(*_: str) -> str:
        raise git.GitError("fatal: detected dubious ownership in repository")

    monkeypatch.setattr(git, "ask", refuse)
    with pytest.raises(Problem, match=r"git does not say which commit this is.*dubious ownership"):
        bounds.judge()


def test_outside_git_the_trees_own_bounds_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match=r"gate\.yaml is missing"):
        bounds.judge()
    with pytest.raises(Problem, match="main has no gate"):
        bounds.judge("main")
    Path("gate.yaml").write_text(DEMO)
    assert bounds.judge() == bounds.Judge(bounds.read(DEMO), "", [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mode: enforce", "mode: maybe", r"mode: .*'maybe'"),
        ("max_ece: 0.15", "max_ece: {bound: 0.15, of: mean}", r"fp32\.max_ece\.of: .*'mean'"),
        ("max_ece: 0.15", "max_ece: high", r"fp32\.max_ece\.bound: .*'high'"),
        ("max_ece: 0.15", "max_ece: 15", r"fp32\.max_ece\.bound: .*15"),
        ("  max_ece: 0.15", "  max_ecce: 0.15", r"fp32\.max_ece: missing(.|\n)*fp32\.max_ecce: unknown key"),
        ("mode: enforce", "mode: [", "is not valid YAML"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(Problem, match=message):
        bounds.read(DEMO.replace(old, new))


def test_off_may_be_written_as_gate_yaml_has_it_though_yaml_takes_it_for_false() -> None:
    text = DEMO.replace("mode: enforce", "mode: off").replace("reason: null", "reason: the ward needs it")
    assert yaml.safe_load(text)["mode"] is False
    assert bounds.read(text).mode == "off"
    with pytest.raises(Problem, match="mode: off needs a reason"):
        bounds.read(DEMO.replace("mode: enforce", "mode: off"))
    with pytest.raises(Problem, match=r"mode: .*True"):
        bounds.read(text.replace("mode: off", "mode: on"))
