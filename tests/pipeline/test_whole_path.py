"""The whole path in small: a copy of the project, `dvc repro`, the registry, the server. Minutes, not hours."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import requests
from PIL import Image

from pipeline import stage
from pipeline.data import smears
from tests.conftest import require
from tests.project import ROOT, TINY, Project
from tests.server import running

SERVER_PYTHON = ROOT / ".venv-serving/bin/python"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("demo"), "demo", TINY, seed=88)
    project.dvc("repro")
    return project


@pytest.fixture(scope="module")
def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """From the slim environment, fed by the project's registry."""
    require(SERVER_PYTHON.is_file(), f"no {SERVER_PYTHON}: `make .venv-serving/.ready` makes it")
    registry = f"sqlite:///{project.root / 'mlflow.db'}"
    with running(tmp_path_factory.mktemp("server"), "--tracking-uri", registry, python=SERVER_PYTHON) as server:
        yield server.url


def test_a_fresh_project_becomes_a_registered_champion(project: Project) -> None:
    registration = json.loads((project.root / "reports/registration.json").read_text())
    assert registration["alias"] == "champion"
    for output in ("reports/metrics.json", "reports/model_card.md", "reports/figures/confusion_matrix.png"):
        assert (project.root / output).stat().st_size > 0
    parity = json.loads((project.root / "reports/parity.json").read_text())
    assert parity["images"] > 0
    assert parity["max_difference"] <= 1e-4
    assert parity["argmax_differs"] == 0


def test_with_nothing_changed_nothing_runs_but_the_looks_at_what_dvc_cannot_see(project: Project) -> None:
    assert ran(project.dvc("repro", "evaluate")) == ["outside"]
    lock, state = (project.root / "dvc.lock").read_bytes(), registry_state(project)
    assert ran(project.dvc("repro")) == ["outside", "register"]
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert registry_state(project) == state
    assert json.loads(project.dvc("status", "--json")) == {
        "outside": ["always changed"],
        "register": ["always changed"],
    }


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def registry_state(project: Project) -> tuple[object, ...]:
    """Aliases, versions, runs, and when artifacts were written."""
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    artifacts = sorted((path.as_posix(), path.stat().st_mtime_ns) for path in (project.root / "mlartifacts").rglob("*"))
    versions = [(each.version, each.tags) for each in client.search_model_versions()]
    return client.get_registered_model("leukdetect").aliases, versions, len(client.search_runs(["1"])), artifacts


def test_an_emptied_registry_and_another_one_get_the_result(project: Project) -> None:
    other = project.root / "other.db"
    for uri, file in (("sqlite:///other.db", other), ("sqlite:///mlflow.db", project.root / "mlflow.db")):
        kept = file.rename(file.with_suffix(".kept")) if file.exists() else None
        done = project.run("env", f"MLFLOW_TRACKING_URI={uri}", "dvc", "repro")
        assert done.returncode == 0, done.stderr
        assert ran(done.stdout) == ["outside", "register"]
        assert mlflow.MlflowClient(f"sqlite:///{file}").get_model_version_by_alias("leukdetect", "champion")
        file.unlink()
        if kept:
            kept.rename(file)


@pytest.mark.parametrize(
    ("section", "key", "value", "stages"),
    [
        ("fetch", "origin", "elsewhere", {"fetch"}),
        ("demo", "size", 48, {"fetch"}),
        ("validate", "max_imbalance", 4, {"validate"}),
        ("prepare", "near_duplicate_bits", 1, {"prepare"}),
        ("augment", "zoom", 0.2, {"features"}),
        ("features", "views", 3, {"features", "train_head"}),
        ("train_head", "learning_rate", 2e-3, {"train_head"}),
        ("fine_tune", "learning_rate", 1e-4, {"fine_tune"}),
        ("calibrate", "components", 32, {"calibrate", "evaluate"}),  # the card says which limits were reached
        ("export", "golden_images", 5, {"export"}),
        ("evaluate", "corner", 0.2, {"evaluate"}),
        ("register", "name", "other", {"export"}),
    ],
)
def test_a_parameter_reruns_only_what_reads_it(
    project: Project, section: str, key: str, value: object, stages: set[str]
) -> None:
    """`dvc status` names the stages that a change itself touches; what lies downstream follows from dvc.yaml."""
    before = project.read()
    changed = project.read()
    changed[section][key] = value
    try:
        project.write(changed)
        status = json.loads(project.dvc("status", "--json"))
    finally:
        project.write(before)
    assert set(status) == stages | {"outside", "register"}  # always: they ask what DVC cannot see


def test_arrays_and_models_have_their_hashes_beside_them(project: Project) -> None:
    sealed = {path.relative_to(project.root).as_posix() for path in project.root.glob("[dm]*/**/*.sha256")}
    models = ("head.keras", "model.keras", "unlikeness.npz", "leukdetect.onnx", "leukdetect.int8.onnx")
    assert sealed == {"data/prepared/images.npy.sha256", *(f"models/{name}.sha256" for name in models)}
    for name in sealed:
        stage.require(project.root / name.removesuffix(".sha256"), "repro")


def test_the_file_runs_where_nothing_of_ours_is_installed(project: Project, tmp_path: Path) -> None:
    shutil.copy(project.root / "models/leukdetect.onnx", tmp_path)
    code = (
        "import json, sys, numpy as np, onnxruntime as ort; s = ort.InferenceSession('leukdetect.onnx');"
        "c = json.loads(s.get_modelmeta().custom_metadata_map['leukdetect']); n = c['decode']['size'];"
        "x = {'image': np.zeros((2, n, n, 3), np.uint8)};"
        "p, e, u, m = s.run(['probabilities', 'embedding', 'unlikeness', 'cam'], x);"
        "assert not {'pipeline', 'serving', 'tensorflow', 'pydantic'} & set(sys.modules);"
        "print(p.shape, e.shape, u.shape, m.shape[:2], [k['key'] for k in c['classes']])"
    )
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "(2, 4) (2, 512) (2,) (2, 4) ['benign', 'early', 'pre', 'pro']\n", result.stderr


def test_the_registered_model_predicts_from_arrays_as_a_pyfunc(project: Project) -> None:
    code = (
        "import mlflow, numpy as np; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "m = mlflow.pyfunc.load_model('models:/leukdetect@champion');"
        "x = np.load('data/prepared/images.npy')[:3]; p = m.predict(x);"
        "print([(round(sum(a['probabilities'].values()), 3), a['decision'] in ('report', 'refer')) for a in p])"
    )
    result = project.run(sys.executable, "-c", code)
    assert result.stdout.splitlines()[-1] == "[(1.0, True), (1.0, True), (1.0, True)]", result.stderr


def test_the_server_names_training_images_that_are_like_it(project: Project, server: str) -> None:
    rows = [row.split(",") for row in (project.root / "data/prepared/split.csv").read_text().splitlines()]
    train = {row[3][:12]: row for row in rows if row[-1] == "train"}
    path = next(row[0] for row in rows if row[-1] == "train")
    with (project.root / "data/raw" / path).open("rb") as file:
        similar = requests.post(f"{server}/explain", files={"file": file}, timeout=30).json()["similar"]
    assert len(similar) == 5
    assert train[similar[0]["id"]][0] == path  # it is itself among them
    assert similar[0]["distance"] < 0.1
    for case in similar:
        assert case["class"] == train[case["id"]][1]
        assert case["thumbnail"].startswith("data:image/webp;base64,")


def test_the_server_answers_for_a_held_out_image_from_the_registry(project: Project, server: str) -> None:
    rows = (project.root / "data/prepared/split.csv").read_text().splitlines()
    path = next(row.split(",")[0] for row in rows if row.endswith(",test"))
    with (project.root / "data/raw" / path).open("rb") as file:
        answer = requests.post(f"{server}/predict", files={"file": file}, timeout=30)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert sum(body["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert body["model"]["version"] == "1"
    assert body["model"]["synthetic"] is True


def test_experiments_metrics_params_and_plots_can_be_compared(project: Project) -> None:
    project.commit("first")
    project.dvc("exp", "run", "-S", "evaluate.prevalence=0.5")  # a cheap stage; test_sweep.py trains
    difference = json.loads(project.dvc("params", "diff", "--json"))
    assert difference["params.yaml"]["evaluate.prevalence"] == {"old": 0.1, "new": 0.5, "diff": 0.4}
    assert "cells_masked" in project.dvc("metrics", "diff", "--all")
    assert "workspace" in project.dvc("exp", "show", "--csv") or project.dvc("exp", "list")
    project.dvc("plots", "show")
    assert "confusion_matrix.png" in (project.root / "dvc_plots/index.html").read_text()


@pytest.mark.slow
def test_two_classes_in_cnmc_naming_with_the_papers_frozen_base(tmp_path: Path, base_weights: Path) -> None:
    source = tmp_path / "download/C-NMC_training_data"
    for fold in range(2):
        for key, rendered, prefix in (("all", "pro", ""), ("hem", "benign", "H")):
            folder = source / f"fold_{fold}" / key
            folder.mkdir(parents=True)
            for patient in range(fold * 6, fold * 6 + 6):
                for index in range(3):
                    pixels = smears.render(rendered, patient, 1, index, 64, 7)
                    Image.fromarray(np.asarray(pixels)).save(folder / f"UID_{prefix}{patient}_{index}_1_{key}.bmp")
    (tmp_path / "project").mkdir()
    project = Project(
        tmp_path / "project",
        "cnmc2019",
        TINY | {
            "fetch": {"source": "folder", "folder": str(tmp_path / "download"), "synthetic": True},
            "model": {"backbone": "ResNet50"},
            "features": {"weights": str(base_weights), "views": 2},
            "prepare": {"image_size": 64},
        },
        seed=0,
    )  # fmt: skip
    project.dvc("repro")
    metrics = json.loads((project.root / "reports/metrics.json").read_text())
    assert set(metrics["fp32"]["per_class"]) == {"hem", "all"}
    rows = [row.split(",") for row in (project.root / "data/prepared/split.csv").read_text().splitlines()[1:]]
    splits_of = {patient: {row[6] for row in rows if row[4] == patient} for patient in {row[4] for row in rows}}
    assert len(splits_of) == 24
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert np.load(project.root / "data/features/inputs/view-00.npy", mmap_mode="r").shape[1:] == (2, 2, 1024)
