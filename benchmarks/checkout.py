"""Another commit's tree in a folder, for benchmarks that compare today's code with it."""

import subprocess
from pathlib import Path

from pipeline.stage import Problem

ROOT = Path(__file__).parents[1]


def at(commit: str, folder: Path) -> Path:
    """Unpacks a commit's files into a new folder, and returns it.

    Raises:
        Problem: there is no such commit here.
    """
    done = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise Problem(f"{commit}: {done.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=done.stdout, check=True)
    return folder
