"""`dvc repro` killed at random moments, and twice at once: nothing half-written, and the same result in the end."""

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.project import TINY, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMAND = ("dvc", "repro", "prepare")


def digests(project: Project) -> dict[str, str]:
    """Of all that the stages made."""
    data = project.root / "data"
    files = [path for path in data.rglob("*") if path.is_file() and path.name != ".gitignore"]
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def started(project: Project) -> subprocess.Popen[str]:
    output = subprocess.PIPE
    command, environment = project.command(*COMMAND)
    return subprocess.Popen(
        command, cwd=project.root, env=environment, stdout=output, stderr=output, text=True, start_new_session=True
    )


def test_killed_at_random_moments_a_pipeline_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = (Project(tmp_path / name, "demo", TINY, seed=88) for name in ("whole", "killed"))
    begun = time.monotonic()
    assert whole.run(*COMMAND).returncode == 0
    takes = time.monotonic() - begun
    moments = random.Random(time.time_ns())
    for _ in range(6):
        process = started(killed)
        time.sleep(moments.uniform(0, takes))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        prepared = killed.root / "data/prepared/images.npy"
        if prepared.exists():
            assert np.load(prepared).shape[1:] == (32, 32, 3)
    both = [started(killed) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both].count(0) >= 1, said
    for process, (out, err) in zip(both, said, strict=True):
        assert process.returncode == 0 or "lock" in out + err, out + err
        assert "Traceback" not in out + err
    assert killed.run(*COMMAND).returncode == 0
    assert digests(killed) == digests(whole)
