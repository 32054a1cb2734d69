"""What git says of a tree: the commit that a run names, and the main branch that judges."""

import subprocess
from pathlib import Path

import pytest

from pipeline.registry import git


def run(*arguments: str, folder: Path | None = None) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout.strip()


def test_the_commit_is_dirty_when_a_tracked_file_changed_unless_the_pipeline_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert git.git_commit() == "unknown"
    run("init", "-q")
    made = ["dvc.lock", "reports/headline.json", "recipes/ward/dvc.lock", "recipes/ward/reports/headline.json"]
    tracked = ["code.py", "recipes/ward/params.yaml", *made]
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    run("add", *tracked)
    run("commit", "-qm", "first")
    head = run("rev-parse", "HEAD")
    assert git.git_commit() == head

    for name in (*made, "notes.txt"):
        (tmp_path / name).write_text("b")
    monkeypatch.chdir(tmp_path / "recipes/ward")
    assert git.git_commit() == head
    for name in ("code.py", "recipes/ward/params.yaml"):
        (tmp_path / name).write_text("b")
        assert git.git_commit() == f"{head}-dirty"
        (tmp_path / name).write_text("a")


def test_the_main_branch_is_the_remotes_and_not_what_this_clone_calls_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    run("init", "-q", "-b", "trunk", str(origin))
    monkeypatch.chdir(origin)
    assert git.main_branch() is None  # no commit, no branch
    run("commit", "--allow-empty", "-qm", "first")
    assert git.main_branch() is None  # and `trunk` is no name that says it
    run("clone", "-q", str(origin), str(clone))
    monkeypatch.chdir(clone)
    run("checkout", "-q", "-b", "main")
    run("commit", "--allow-empty", "-qm", "mine")
    assert git.main_branch() == "origin/trunk"
    assert git.resolve("origin/trunk") == run("rev-parse", "trunk")
    assert git.resolve("no-such") is None
    assert git.branch() == "main"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://someone:secret@example.org/a.git", "https://example.org/a.git"),
        ("https://example.org/ward@2.git", "https://example.org/ward@2.git"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/srv/git/a.git", "/srv/git/a.git"),
    ],
)
def test_a_remotes_address_is_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, shown: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (git.remote(), git.branch(), git.is_repository()) == ("", "", False)
    run("init", "-q")
    assert git.remote() == ""
    run("remote", "add", "origin", address)
    assert (git.remote(), git.is_repository()) == (shown, True)


def test_the_person_behind_a_workflow_is_named_before_the_machines_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTOR", raising=False)
    run("init", "-q")
    run("config", "user.email", "nurse@ward.example")
    assert git.who() == "nurse@ward.example"
    monkeypatch.setenv("GITHUB_ACTOR", "octocat")
    assert git.who() == "octocat"
