"""The whole path with folds: two trainings whose answers are the estimate, and a model that learnt from all."""

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import yaml

from leukdetect import similar
from pipeline.evaluation import report
from tests.project import LAX, NO_BOUNDS, TINY, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SMALL = TINY | {
    "demo": {"patients": 6, "images_per_patient": 4, "size": 40},
    "estimate": {"folds": [0, 1], "seeds": [88]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("folds"), "demo", SMALL, seed=88)
    project.dvc("repro")
    return project


@pytest.fixture(scope="module")
def split(project: Project) -> pd.DataFrame:
    return table(project, "data/prepared/split.csv")


def table(project: Project, path: str) -> pd.DataFrame:
    return pd.read_csv(StringIO((project.root / path).read_text()), dtype={"image": str, "patient": str, "sha256": str})


def test_the_model_learnt_from_all_images_and_is_champion(project: Project, split: pd.DataFrame) -> None:
    assert set(split["split"]) == {"train"}
    history = pd.concat(table(project, f"reports/history/{name}.csv") for name in ("train_head", "fine_tune"))
    assert history["epoch"].tolist() == [0, 1, 0]  # all of them
    assert history["val_loss"].isna().all()
    registration = json.loads((project.root / "reports/registration.json").read_text())
    assert registration["alias"] == "champion"
    assert ("held-out groups a class", 6) in [(check["name"], check["value"]) for check in registration["checks"]]
    measured = report.read(project.root / report.METRICS)
    assert measured.out_of_fold
    assert (measured.out_of_fold.folds, measured.split.test, measured.split.test_groups) == (2, len(split), 24)
    card = (project.root / "reports/model_card.md").read_text()
    assert "Each image was answered once, by a\nmodel that saw no image of its group" in card


def test_every_image_is_answered_once_by_a_model_that_saw_no_image_of_its_group(
    project: Project, split: pd.DataFrame
) -> None:
    said = table(project, "reports/predictions.csv")
    assert said["image"].tolist() == [sha256[:12] for sha256 in split["sha256"]]
    sides = table(project, "data/folds/folds.csv")
    keys, pixels = ["benign", "early", "pre", "pro"], np.load(project.root / "data/prepared/images.npy")
    answered = pd.Series(0, index=split.index)
    for fold in ("0", "1"):
        held_out, learnt = sides[fold] == "test", sides[fold] == "train"
        assert not set(split["group"][held_out]) & set(split["group"][learnt])
        for precision, column in (("fp32", "predicted"), ("int8", "int8_predicted")):
            session = onnxruntime.InferenceSession(project.root / f"data/folds/88-{fold}/{precision}.onnx")
            (probabilities,) = session.run(["probabilities"], {"image": pixels[held_out]})
            alike = np.array(keys)[probabilities.argmax(1)] == said[column][held_out]
            assert alike.mean() >= 0.95  # images one by one and in batches differ in the last bits
            index = similar.read(session.get_modelmeta().custom_metadata_map, len(keys))
            assert index
            assert set(index.ids) <= {sha256[:12] for sha256 in split["sha256"][learnt]}
        answered += held_out
    assert (answered == 1).all()


def test_a_further_seed_trains_no_fold_again(project: Project) -> None:
    before = project.read()
    try:
        project.write(before | {"estimate": {"folds": [0, 1], "seeds": [88, 89]}})
        touched = set(json.loads(project.dvc("status", "--json")))
    finally:
        project.write(before)
    assert {name for name in touched if name.startswith("fold")} == {"fold@0-89", "fold@1-89"}
    assert not touched & {"prepare", "features", "train_head", "fine_tune"}


def test_the_folds_are_in_the_cache_where_they_were_made_once(project: Project) -> None:
    made = project.root / "data/folds/88-0/fp32.npz"
    before = made.read_bytes()
    made.unlink()
    assert "Running stage 'fold" not in project.dvc("repro", "fold@0-88")
    assert Path(made).read_bytes() == before


def test_a_model_that_falls_short_is_refused_and_the_champion_stays(project: Project) -> None:
    recipe = project.read()
    recipe["calibrate"]["target_sensitivity"] = 0.9  # another file than the champion's
    project.write(recipe)
    strict = LAX | {"fp32": NO_BOUNDS | {"min_balanced_accuracy": 1.0}}
    (project.root / "gate.yaml").write_text(yaml.safe_dump(strict))
    project.commit("strict")
    result = project.run("dvc", "repro")
    assert result.returncode != 0
    assert "FAILS  ≥ 1.0000" in result.stdout
    assert "It falls short in: balanced accuracy" in result.stderr
    registration = json.loads((project.root / "reports/registration.json").read_text())
    assert registration["alias"] == "challenger"
    code = (
        "import mlflow; c = mlflow.MlflowClient('sqlite:///mlflow.db');"
        "print(c.get_model_version_by_alias('leukdetect', 'champion').version)"
    )
    assert project.run(sys.executable, "-c", code).stdout.split()[-1] != registration["version"]


def test_ctrl_c_in_training_keeps_what_was_learnt_and_the_next_run_goes_on(project: Project) -> None:
    recipe = project.read()
    recipe["train_head"]["epochs"] = 3
    project.write(recipe)
    environment = os.environ | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    command = [sys.executable, "-m", "pipeline.train_head"]
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `make test &` ignores it
    )
    assert process.stdout is not None
    before = (project.root / "models/head.keras").read_bytes()
    while not process.stdout.readline().startswith("epoch 1/3"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: nothing half-written was kept" in errors
    assert "Traceback" not in errors
    assert (project.root / "models/head.keras").read_bytes() == before

    again = project.run(*command)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch" in again.stdout
    assert "epoch 1/3" not in again.stdout
