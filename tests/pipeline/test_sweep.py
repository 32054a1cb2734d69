"""A sweep over a small grid, queued with DVC as README.md has it."""

import csv
import io
import os
import signal
import time
from pathlib import Path

import mlflow
import pytest

from tests.project import TINY, Project

RATES = {"0.002", "0.004"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_queued_grid_reuses_the_views_and_is_compared_in_dvc_and_in_mlflow(tmp_path: Path) -> None:
    registry = f"sqlite:///{tmp_path}/mlflow.db"
    project = Project(tmp_path, "demo", TINY, seed=88, environment={"MLFLOW_TRACKING_URI": registry})
    project.dvc("repro", "features")
    project.commit("first")
    try:
        grid = f"train_head.learning_rate={','.join(sorted(RATES))}"
        project.dvc("exp", "run", "--queue", "-C", "data/features", "-S", grid)
        project.dvc("exp", "run", "--run-all")
        shown = list(csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv"))))
        experiments = [row for row in shown if row["State"] == "Success"]
        logs = [project.dvc("queue", "logs", row["Experiment"]) for row in experiments]
    finally:
        stop(project)

    assert all("Stage 'features' didn't change, skipping" in log for log in logs), logs
    by_rate = {value(row, "train_head.learning_rate"): row for row in experiments}
    assert set(by_rate) == {float(rate) for rate in RATES}
    runs = [run for run in mlflow.MlflowClient(registry).search_runs(["1"]) if run.info.status == "FINISHED"]
    logged = {float(run.data.params["train_head.learning_rate"]): run.data.metrics for run in reversed(runs)}
    for rate, row in by_rate.items():
        assert logged[rate]["fp32/balanced_accuracy"] == pytest.approx(value(row, "fp32.balanced_accuracy"), abs=1e-4)


def value(row: dict[str, str], name: str) -> float:
    """Of a column, whose name may begin with its file's."""
    found = [text for column, text in row.items() if column == name or column.endswith(f":{name}")]
    assert len(found) == 1, list(row)
    return float(found[0])


def stop(project: Project) -> None:
    """DVC's queue has a worker in the background, which ends by itself, but later."""
    project.run("dvc", "queue", "stop", "--kill")
    deadline = time.monotonic() + 60
    while left := processes_in(project.root):
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"DVC's queue worker did not stop: {left}")
        time.sleep(0.5)


def processes_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                here = (entry / "cwd").readlink()
            except OSError:  # it has just ended, or is somebody else's
                continue
            if here.is_relative_to(folder):
                found.append(int(entry.name))
    return found
