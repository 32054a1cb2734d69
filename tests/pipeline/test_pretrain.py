"""`python -m pipeline.pretrain` on cells drawn here: what it teaches, writes and refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline import pretrain
from pipeline.network import classifier
from pipeline.stage import Problem
from tests.project import ROOT

SAID = ["--origin", "drawn in a test", "--licence", "CC0"]


def draw(folder: Path, count: int, shade: int) -> None:
    """Cells of one class: a square of its shade on a light ground."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([shade, count])
    for number in range(count):
        pixels = rng.integers(190, 250, (40, 40, 3))
        pixels[10:30, 10:30] -= [shade, shade // 2, 20]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cells")
    for key, shade in (("pale", 20), ("dark", 160)):
        draw(root / "one" / key, 8, shade)
    for key, shade in (("a", 40), ("b", 90), ("c", 170)):
        draw(root / "two" / key, 6, shade)
    draw(root / "free", 9, 70)
    return root


def command(*arguments: object, out: Path, backbone: str = "VGG16") -> list[str]:
    toy = ["--backbone", backbone, "--size", "32", "--tiles", "2", "--batch", "8", "--epochs", "2"]
    return ["pretrain", *map(str, arguments), *toy, "--out", str(out), *SAID]


def pretrained(folder: Path, arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"} | environment
    run = [sys.executable, "-m", "pipeline.pretrain", *arguments[1:]]
    return subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_base_of_labelled_and_unlabelled_cells_is_what_keras_reads(folders: Path, tmp_path: Path) -> None:
    asked = command(
        "--labelled", folders / "one", folders / "two", "--unlabelled", folders / "free",
        out=tmp_path / "base.weights.h5", backbone="ResNet50",
    )  # fmt: skip
    done = pretrained(tmp_path, asked)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "base.json").read_text())
    assert record["sets"]["two"]["c"] == {"train": 5, "held out": 1}
    assert record["licence"] == "CC0"

    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    base.load_weights(tmp_path / "base.weights.h5")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    expected = base(keras.applications.resnet50.preprocess_input(images.astype(np.float32)), training=False)
    whole = classifier.build(64, 4)
    classifier.load_base_weights(whole, str(tmp_path / "base.weights.h5"))
    found = keras.Model(whole.input, classifier.feature_maps(whole))(images, training=False)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labelled", "empty"], "empty holds no images"),
        (["--labelled", "alone"], "alone holds one class, only; it must hold a folder for each of two or more"),
        (["--unlabelled", "absent"], "absent is no folder"),
        ([], "give folders"),
        (["--unlabelled", "free", "--batch", "6"], "--batch a multiple of tiles × tiles"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_words(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "alone" / "only", 3, 50)
    draw(tmp_path / "free", 3, 50)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    asked = command(out=tmp_path / "b.weights.h5")
    monkeypatch.setattr(sys, "argv", [*asked, *arguments])
    with pytest.raises(Problem, match=said):
        pretrain.main()
