"""`python -m pipeline.pretrain` on cells drawn here: what it teaches, writes and refuses."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import keras
import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline import pretrain, stage
from pipeline.network import bases, classifier
from pipeline.registry import tracking
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
    return [*map(str, arguments), *toy, "--out", str(out), *SAID]


def start(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    env = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    run = [sys.executable, "-m", "pipeline.pretrain", *arguments]
    return subprocess.Popen(run, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pretrained(folder: Path, arguments: Sequence[str]) -> str:
    process = start(folder, arguments)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_a_base_of_labelled_and_unlabelled_cells_is_what_keras_reads(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.weights.h5"
    sets = ("--labelled", folders / "one", folders / "two", "--unlabelled", folders / "free")
    pretrained(tmp_path, command(*sets, out=out, backbone="ResNet50"))
    record = json.loads((tmp_path / "base.json").read_text())
    assert record["sets"]["two"]["c"] == {"train": 5, "held out": 1}
    assert (record["licence"], record["weights_sha256"]) == ("CC0", stage.sha256(out))
    assert len(record["history"]) == 2
    assert [path for path in (tmp_path / ".state").rglob("*") if path.is_file()] == []
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = store.get_run(record["mlflow_run"])
    assert (run.info.status, run.data.params["licence"]) == ("FINISHED", "CC0")
    assert len(store.get_metric_history(run.info.run_id, "pretrain/loss/unlabelled")) == 2
    assert {each.path for each in store.list_artifacts(run.info.run_id)} == {"base.weights.h5", "base.json"}

    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3))
    base.load_weights(out)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    expected = base(keras.applications.resnet50.preprocess_input(images.astype(np.float32)), training=False)
    whole = classifier.build(64, 4)
    classifier.load_base_weights(whole, str(out))
    found = keras.Model(whole.input, classifier.feature_maps(whole))(images, training=False)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert bases.credit(str(out), "ResNet50").endswith("(drawn in a test. Licence: CC0)")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_file_as_one_that_was_not(folders: Path, tmp_path: Path) -> None:
    sets = ("--labelled", folders / "two", "--unlabelled", folders / "free")
    pretrained(tmp_path / "whole", command(*sets, out=tmp_path / "whole.weights.h5"))
    asked = command(*sets, out=tmp_path / "cut.weights.h5")
    process = start(tmp_path / "cut", asked)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 1/2"):
            break
    process.kill()
    process.communicate()
    assert not (tmp_path / "cut.weights.h5").exists()
    assert "going on after epoch 1 of 2" in pretrained(tmp_path / "cut", asked)
    with h5py.File(tmp_path / "whole.weights.h5") as whole, h5py.File(tmp_path / "cut.weights.h5") as cut:
        names: list[str] = []
        whole.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) == 26
        assert all(np.array_equal(whole[name], cut[name]) for name in names)


@pytest.mark.parametrize("backbone", ["ResNet50", "VGG16"])
def test_what_is_saved_is_what_was_trained(backbone: str, tmp_path: Path) -> None:
    """By Keras's own network and normalisation: BGR, the channel means subtracted."""
    keras.utils.set_random_seed(1)
    trained = classifier.build(32, 3, backbone)
    classifier.save_base_weights(trained, tmp_path / "b.weights.h5", backbone)
    base = getattr(keras.applications, backbone)(include_top=False, weights=None, input_shape=(32, 32, 3))
    base.load_weights(tmp_path / "b.weights.h5")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    expected = base(keras.applications.resnet50.preprocess_input(images.astype(np.float32)), training=False)
    found = keras.Model(trained.input, classifier.feature_maps(trained))(images, training=False)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_base_is_credited_as_far_as_its_record_says(tmp_path: Path) -> None:
    path = tmp_path / "own.weights.h5"
    assert bases.credit("none", "VGG16") == ""
    assert bases.credit("imagenet", "VGG16") == "; base: VGG16 of keras.applications, trained on ImageNet"
    assert bases.credit(str(path), "VGG16") == "; base: VGG16 of own.weights.h5, which is not on this machine"
    path.write_bytes(b"weights")
    unknown = f"; base: VGG16 of own.weights.h5, {stage.sha256(path)[:12]} (no record of its images beside it)"
    for content in (None, "[]", '{"origin": "ward"', '{"origin": "ward"}'):
        if content:
            (tmp_path / "own.json").write_text(content)
        assert bases.credit(str(path), "VGG16") == unknown
    (tmp_path / "own.json").write_text('{"origin": "Ward 4", "licence": "internal"}')
    assert bases.credit(str(path), "VGG16").endswith("(Ward 4. Licence: internal)")


def test_the_readmes_commands_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "check", lambda: None)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    found = [line for line in text.splitlines() if line.startswith("python -m pipeline.pretrain")]
    assert len(found) == 3
    for line in found:
        monkeypatch.setattr(sys, "argv", shlex.split(line)[2:])
        assert pretrain._options().out.name.endswith(bases.SUFFIX)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labelled", "empty"], "empty holds no images"),
        (["--labelled", "alone"], "alone holds one class, only; it must hold a folder for each of two or more"),
        (["--unlabelled", "absent"], "absent is no folder"),
        ([], "give folders"),
        (["--unlabelled", "free", "--batch", "6"], "--batch must be a multiple of tiles × tiles"),
        (["--unlabelled", "free", "--out", "base.h5"], r"base\.h5 must be a file that ends in \.weights\.h5"),
        (["--unlabelled", "free", "--colour", "nan"], "--colour must be from 0 to 2"),
        (["--unlabelled", "free", "--out", "old.weights.h5"], "old.json exists: give another --out, or --overwrite"),
        (["--unlabelled", "free", "--licence", " "], "--origin and --licence must say"),
        (["--unlabelled", "free", "--from", "no.weights.h5"], r"no file of weights no\.weights\.h5"),
        (["--unlabelled", "free", "--size", "24"], r"--size that is a multiple of 32, or --tiles 1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "alone" / "only", 3, 50)
    draw(tmp_path / "free", 3, 50)
    (tmp_path / "old.json").touch()
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(sys, "argv", ["pretrain", *command(out=tmp_path / "b.weights.h5"), *arguments])
    with pytest.raises(Problem, match=said):
        pretrain.main()
    assert not list(tmp_path.glob("*.weights.h5"))
