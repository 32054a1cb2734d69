"""The views: the same whether the stage was interrupted or not, and of the size that was asked for."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import features, params, stage
from pipeline.data import prepared
from pipeline.network import augment, classifier, frozen, precompute
from pipeline.network import stored as stored_views
from pipeline.network.views import session
from tests.project import ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared data of 40 random images of 32 px, and a recipe of three views."""
    recipe = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    recipe["prepare"]["image_size"] = 32
    recipe["features"]["views"] = 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    Path("data/prepared").mkdir(parents=True)
    np.save("data/prepared/images.npy", np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)).astype(np.uint8))
    keys = [c["key"] for c in recipe["classes"]]
    rows = [
        (f"{keys[i % 4]}/{i}.jpg", keys[i % 4], i % 4, f"{i:064x}", "", f"g{i}", "train" if i < 40 else "val")
        for i in range(50)
    ]
    columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
    pd.DataFrame(rows, columns=columns).to_csv("data/prepared/split.csv", index=False)
    return tmp_path


def stored(what: Literal["inputs", "pooled"] = "inputs") -> tuple[np.ndarray, np.ndarray]:
    views, val = stored_views.read(what)
    return np.stack(views), np.array(val)


def test_an_interrupted_stage_goes_on_after_its_last_view_with_the_same_result(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features.main()
    views, val = stored()
    assert views.shape == (3, 40, 32, 32, 3)
    assert val.shape == (10, 32, 32, 3)
    assert not any(stage.STATE.glob("features/*"))

    def one_and_ctrl_c(items: Iterable[int], *arguments: object, **options: object) -> Iterator[int]:
        yield next(iter(items))
        raise KeyboardInterrupt

    before = (stored_views.FEATURES / "inputs/val.npy").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(stage, "progress", one_and_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            features.main()
    assert (stored_views.FEATURES / "inputs/val.npy").stat().st_mtime_ns == before  # what stood before still stands
    features.main()
    assert "going on after view 1 of 3" in capsys.readouterr().out
    for a, b in zip((views, val), stored(), strict=True):
        assert np.array_equal(a, b)


def test_where_all_images_are_trained_on_the_validation_views_are_there_and_empty(project: Path) -> None:
    table = Path("data/prepared/split.csv")
    table.write_text(table.read_text().replace(",val\n", ",train\n"))
    features.main()
    views, val = stored()
    assert (views.shape, val.shape) == ((3, 50, 32, 32, 3), (0, 32, 32, 3))


def test_a_fold_takes_the_views_that_it_would_make(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Path("data/prepared/split.csv")
    table.write_text(table.read_text().replace(",val\n", ",train\n"))
    fold = project / "fold"
    shutil.copytree(project / "data", fold / "data")
    rows = pd.read_csv(fold / table, dtype=str, keep_default_na=False)
    rows.loc[7:30:5, "split"], rows.loc[40:43, "split"] = "test", "embargo"
    rows.to_csv(fold / table, index=False)
    shutil.copy("params.yaml", fold)
    recipe = params.load()
    precompute.take(recipe, fold)  # made here first, where they are not
    taken = stored_views.read("inputs")[0]

    monkeypatch.chdir(fold)
    views, val = stored()
    assert (views.shape, val.shape) == ((3, 41, 32, 32, 3), (0, 32, 32, 3))
    record = stored_views.RECORD.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(precompute, "fill", None)
        precompute.ensure(recipe)
    features.main()
    assert np.array_equal(views, stored()[0])
    assert stored_views.RECORD.read_bytes() == record
    assert len(taken[0]) == 50


KILLED = """
import os, signal
from pipeline import features
from pipeline.network import precompute, stored
write = stored.write
def after_a_batch(batches):
    yield next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
def killed(folder, name, rows, batches):
    write(folder, name, rows, batches if name == "view-00.npy" else after_a_batch(batches))
stored.write, precompute.BATCH = killed, 8
features.main()
"""


def test_nothing_is_left_of_a_view_in_whose_middle_the_process_was_killed(project: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    (half,) = stage.STATE.glob("features/*/inputs/.*")
    assert half.name.startswith(".view-01.npy.")

    features.main()
    names = {str(path.relative_to(stored_views.FEATURES)) for path in stored_views.FEATURES.rglob("*")}
    assert names == {
        "features.json",
        "inputs",
        *(f"inputs/{name}.npy" for name in ("view-00", "view-01", "view-02", "val")),
    }


def test_another_recipe_does_not_go_on_from_what_was_left(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = stage.STATE.glob("features/*")
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(recipe | {"seed": recipe["seed"] + 1}))
    features.main()
    assert "going on" not in capsys.readouterr().out
    assert not left.exists()


def test_views_that_are_not_here_are_made_before_a_phase_is_trained_and_only_then(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features.main()
    recipe, before = params.load(), stored()
    record = stored_views.RECORD.read_bytes()
    filled: list[str] = []
    fill = precompute.fill

    def filling(recipe: params.Params) -> None:
        filled.append(recipe.augment.model_dump_json())
        fill(recipe)

    monkeypatch.setattr(precompute, "fill", filling)
    precompute.ensure(recipe)
    assert not filled  # all is here
    shutil.rmtree(stored_views.FEATURES)
    precompute.ensure(recipe)
    for a, b in zip(before, stored(), strict=True):
        assert np.array_equal(a, b)
    assert stored_views.RECORD.read_bytes() == record
    other = yaml.safe_load(Path("params.yaml").read_text())
    other["augment"]["rotation"] = 0
    precompute.ensure(params.parse(other))  # as after a switch of branches
    precompute.ensure(recipe)
    assert len(filled) == 3
    monkeypatch.setattr(precompute, "CODE", [*precompute.CODE, Path("params.yaml")])  # code that changed
    precompute.ensure(recipe)
    assert len(filled) == 4


def test_what_dvc_keeps_is_the_same_whatever_the_processor_makes_of_the_activations(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features.main()
    record = stored_views.RECORD.read_bytes()
    other_bits = [{"inputs": np.zeros((40, 32, 32, 3), np.uint8)}]
    monkeypatch.setattr(precompute, "_computing", lambda recipe: nullcontext(lambda batches: iter(other_bits)))
    features.main()
    assert not stored()[0].any()
    assert stored_views.RECORD.read_bytes() == record


def test_the_key_of_the_views_covers_what_their_code_imports_of_the_network() -> None:
    imported = set()
    for path in precompute.CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "pipeline.network":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline.network."):
                imported.add(str(node.module).rsplit(".", 1)[1])
    assert "stain" in imported
    assert imported <= {path.stem for path in precompute.CODE}


def test_both_phases_ask_for_the_views_before_they_read_them() -> None:
    for phase in ("train_head", "fine_tune"):
        text = (ROOT / f"pipeline/{phase}.py").read_text()
        assert 0 < text.index("precompute.ensure(recipe)") < text.index("stored.read(")


@pytest.fixture
def pretrained(project: Path, base_weights: Path) -> params.Params:
    """The paper's boundary over weights from a file."""
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    recipe["features"]["weights"] = str(base_weights)
    recipe["model"]["last_layer"], recipe["fine_tune"]["trainable_from"] = None, "conv4_block1_1_conv"
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    return params.load()


def test_what_is_stored_of_a_pretrained_base_is_what_keras_computes(pretrained: params.Params) -> None:
    features.main()
    views, val = stored()
    pooled_views, pooled_val = stored("pooled")
    assert views.dtype == np.float16
    assert views.shape == (3, 40, 2, 2, 512)  # 4×4 at the cut, of which every second row and column is read
    assert pooled_views.shape == (3, 40, 2048)

    keras.utils.set_random_seed(pretrained.seed)
    whole = frozen.base_model(pretrained)
    outputs = {
        "inputs": whole.get_layer("conv3_block4_out").output,
        "pooled": whole.get_layer(classifier.POOLED).output,
    }
    pixels, train = prepared.read("train")
    rows = train.index[:5]
    view = np.stack(
        [augment.view(pixels[r], pretrained.augment, pretrained.seed, 1, train.loc[r, "sha256"]) for r in rows]
    )
    expected = {name: tensor.numpy() for name, tensor in keras.Model(whole.input, outputs)(view).items()}
    # float16 keeps 11 bits; the runtimes differ in the last bits of float32
    close = partial(np.allclose, rtol=2**-10, atol=2**-10)
    assert close(views[1, :5], expected["inputs"][:, ::2, ::2])
    assert np.allclose(pooled_views[1, :5], expected["pooled"], rtol=1e-4, atol=1e-5)
    assert pooled_val.shape == (10, 2048)
    assert val.shape == (10, 2, 2, 512)
    # Where only the head is trained, nothing reads what lies at the cut, nor the images.
    precompute.fill(pretrained.model_copy(update={"fine_tune": pretrained.fine_tune.model_copy(update={"epochs": 0})}))
    assert {path.name for path in stored_views.FEATURES.iterdir()} == {"pooled", "features.json"}
    assert np.array_equal(pooled_views, stored("pooled")[0])


def test_onnxruntime_agrees_with_tensorflow(pretrained: params.Params) -> None:
    whole = frozen.base_model(pretrained)
    outputs = {
        "inputs": classifier.frozen_part(whole, "conv4_block6_out").output,
        "pooled": whole.get_layer(classifier.POOLED).output,
    }
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    ours = session(frozen.graph(whole, outputs), threads=2)(images)
    theirs = frozen.tensorflow(whole, outputs)(images)
    assert set(ours) == set(theirs) == set(outputs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        assert np.abs(ours[name] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_images_alone_need_no_tensorflow(project: Path) -> None:
    code = "import sys; from pipeline import features; features.main(); assert 'tensorflow' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
