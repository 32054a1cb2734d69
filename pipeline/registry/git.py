"""What git says of this tree: its commit, branch, and the main branch that others see."""

import getpass
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

# The first that exists is the main branch: where there is a remote, what it has, and not what this clone calls main.
MAIN = ("origin/HEAD", "origin/main", "origin/master", "main", "master")

UNKNOWN, DIRTY = "unknown", "-dirty"  # for a commit, and after one


class GitError(Exception):
    """git could not answer."""


def ask(*arguments: str) -> str:
    """What `git ARGUMENTS` prints. Raises GitError with what it says instead."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    except FileNotFoundError as error:
        raise GitError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise GitError(error.stderr.strip()) from error
    return done.stdout.strip()


def _said(*arguments: str) -> str:
    """As `ask`, or empty where git could not answer."""
    try:
        return ask(*arguments)
    except GitError:
        return ""


def is_repository() -> bool:
    """Whether this folder is under git. Raises GitError where git refuses to say, as in another owner's."""
    here = Path.cwd()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        return False
    ask("rev-parse", "--git-dir")
    return True


def git_commit() -> str:
    """HEAD's 40 hex digits, with `-dirty` if tracked files differ from it, or `unknown` outside git.

    dvc.lock and reports/, a recipe's too, do not count: the pipeline itself rewrites them on every run.
    """
    try:
        head = ask("rev-parse", "HEAD")
        own = ("dvc.lock", "reports", "recipes/*/dvc.lock", "recipes/*/reports")
        ours = (":/", *(f":(top,exclude,glob){path}{end}" for path in own for end in ("", "/**")))
        changes = ask("status", "--porcelain", "--untracked-files=no", "--", *ours)
    except GitError:
        return UNKNOWN
    return f"{head}{DIRTY}" if changes else head


def path_of(name: str) -> str:
    """A file of this folder by its path in the repository; its name outside git."""
    return _said("rev-parse", "--show-prefix") + name


def branch() -> str:
    """The branch's name, by a workflow's word where that checked out a commit; empty if neither says it."""
    here = _said("branch", "--show-current")
    return here or os.environ.get("GITHUB_HEAD_REF") or os.environ.get("GITHUB_REF_NAME", "")


def remote() -> str:
    """The address of `origin` without what may be a password in it, or empty."""
    address = urlsplit(_said("remote", "get-url", "origin"))
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def resolve(revision: str) -> str | None:
    """A revision's commit, or None where there is no such revision."""
    return _said("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") or None


def main_branch() -> str | None:
    """The name of the main branch, such as `origin/main`, or None where no branch is one."""
    found = next((revision for revision in MAIN if resolve(revision)), None)
    return ask("rev-parse", "--abbrev-ref", found) if found else None


def who() -> str:
    """Who runs this: the person behind a workflow, else git's identity, else the system's user."""
    return os.environ.get("GITHUB_ACTOR") or _said("config", "user.email") or user()


def user() -> str:
    """The system's user, as MLflow's own clients name it; a container's may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
