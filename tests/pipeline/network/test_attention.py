"""Attention pooling in Keras: what is saved, what half precision leaves alone, and both phases of training with it."""

import math
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import features, fine_tune, params, train_head
from pipeline.data import prepared
from pipeline.network import classifier, frozen, stored, trained
from pipeline.network.backbones import BACKBONES
from pipeline.stage import Problem
from tests import toy_backbone
from tests.project import ROOT
from tests.toy_backbone import SQUARE

SIDE = 3  # positions
SIZE = SIDE * SQUARE


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "ResNet50", toy_backbone.TOY)


def build(pooling: str) -> keras.Model:
    keras.utils.set_random_seed(3)
    return classifier.build(SIZE, 4, pooling=pooling)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)


def test_one_position_has_nothing_to_weigh() -> None:
    with pytest.raises(Problem, match=r"model\.pooling: the last maps are 1 × 1; give average, or a larger"):
        classifier.build(SQUARE, 4, pooling="attention")


def test_an_average_is_what_it_was_so_that_files_from_before_load() -> None:
    whole = build("average")
    names = [layer.name for layer in whole.layers]
    assert names[names.index("toy_out") + 1 :] == [
        *("avg_pool", "head_dense_1", "head_bn", "head_relu_1", "head_dropout_1", "head_dense_2", "head_relu_2"),
        *("head_dropout_2", "logits", "probabilities"),
    ]
    assert classifier.base_layers(whole)[-1] == "toy_out"
    assert classifier.attention(whole) is None


def test_attention_of_a_resnet50_has_so_many_weights_and_trains_with_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    whole = classifier.build(64, 4, pooling="attention")
    own = [w for layer in whole.layers if layer.name.startswith("head_attention") for w in layer.weights]
    assert sum(math.prod(w.shape) for w in own) == 2 * (2048 * 128 + 128) + 128 + 1
    part = classifier.trainable_part(whole, "conv5_block3_out")
    classifier.set_trainable(part, [], batch_norm=False)
    assert len(part.trainable_weights) == len(own) + 8  # and the dense and batch normalisation layers'
    assert classifier.base_layers(whole)[-1] == "conv5_block3_out"


def test_a_saved_model_is_of_keras_own_layers_and_answers_alike(images: np.ndarray, tmp_path: Path) -> None:
    whole = build("attention")
    whole.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert {type(layer).__module__.split(".")[0] for layer in loaded.layers} == {"keras"}
    assert np.array_equal(loaded(images, training=False), whole(images, training=False))
    assert [tensor.shape for tensor in (classifier.attention(loaded),) if tensor is not None] == [(None, SIDE**2, 1)]
    assert classifier.feature_maps(loaded).shape == (None, SIDE, SIDE, 8)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_attention_is_weighed_in_float32_whatever_the_rest_is_trained_in(precision: str, images: np.ndarray) -> None:
    whole = build("attention")
    part = classifier.trainable_part(whole, None, precision)
    halved = {layer.name for layer in part.layers if layer.compute_dtype != "float32"}
    assert {"toy_conv_2", "head_attention_tanh", "head_attention_gate", "head_dense_1"} <= halved
    weighing = [layer for layer in part.layers if "scores" in layer.name or layer.name.startswith("head_atten")]
    for layer in weighing[weighing.index(part.get_layer("head_attention_scores")) :]:
        assert layer.compute_dtype == "float32"
    ours, theirs = (
        keras.Model(model.input, [classifier.attention(model), classifier.embedding(model)])(images, training=False)
        for model in (part, whole)
    )
    assert ours[0].dtype == "float32"
    assert np.array(ours[0]).sum(axis=1) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0.02)


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> params.Params:
    """Images whose class is the colour of one square of nine, a pretrained base that tells colours, and attention."""
    monkeypatch.chdir(tmp_path)
    Path("mlflow.db").write_bytes(empty_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    keras.utils.set_random_seed(3)
    base = BACKBONES["ResNet50"].base(input_shape=(SIZE, SIZE, 3))
    toy_backbone.tells_colours(base)
    base.save_weights("base.weights.h5")

    recipe = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    recipe["prepare"]["image_size"] = SIZE
    recipe["model"] |= {"pooling": "attention", "last_layer": None}
    recipe["features"] |= {"weights": "base.weights.h5", "views": 2}
    recipe["train_head"] |= {"epochs": 9, "patience": 9, "learning_rate": 0.02}
    recipe["fine_tune"] |= {"epochs": 2, "trainable_from": toy_backbone.CUT, "learning_rate": 0.001}
    Path("params.yaml").write_text(yaml.safe_dump(recipe))

    rng = np.random.default_rng(0)
    colours = np.array([(230, 20, 20), (20, 230, 20), (20, 20, 230), (230, 230, 20)])
    images = rng.integers(0, 60, (120, SIDE, SIDE, 3)).astype(np.uint8)
    labels, places = np.arange(120) % 4, rng.integers(0, SIDE**2, 120)
    images.reshape(120, -1, 3)[np.arange(120), places] = colours[labels]
    Path("data/prepared").mkdir(parents=True)
    np.save("data/prepared/images.npy", images.repeat(SQUARE, axis=1).repeat(SQUARE, axis=2))
    keys = [c["key"] for c in recipe["classes"]]
    rows = [
        (f"{keys[label]}/{i}.jpg", keys[label], label, f"{i:064x}", "", f"g{i}", "train" if i < 80 else "val")
        for i, label in enumerate(labels)
    ]
    columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
    pd.DataFrame(rows, columns=columns).to_csv("data/prepared/split.csv", index=False)
    return params.load()


def test_both_phases_train_attention_phase_1_from_the_stored_maps(project: params.Params) -> None:
    features.main()
    assert {path.name for path in stored.FEATURES.iterdir()} == {"features.json", "inputs", "maps"}
    views, val = stored.read("maps")
    assert (views[0].shape, val.shape, val.dtype) == ((80, SIDE, SIDE, 8), (40, SIDE, SIDE, 8), np.float16)

    keras.utils.set_random_seed(project.seed)
    models = [frozen.base_model(project)]
    pixels, rows = prepared.read("val")
    wanted = keras.Model(models[0].input, classifier.feature_maps(models[0]))(pixels[rows.index]).numpy()
    np.testing.assert_allclose(val, wanted, rtol=2**-10, atol=2**-10)

    for phase, path in ((train_head, trained.HEAD), (fine_tune, trained.MODEL)):
        phase.main()
        models.append(trained.load_model(path))
    for before, after, base_too in (*zip(models, models[1:], (False, True), strict=False),):
        for name in ("toy_conv_1", "toy_conv_2", "head_attention_tanh", "head_attention_gate", "head_attention_scores"):
            old, new = (model.get_layer(name).get_weights()[0] for model in (before, after))
            trains = name.startswith("head_") or (base_too and name == toy_backbone.CUT)
            assert np.array_equal(old, new) != trains, name

    # The class is in one square of nine, wherever it lies: what was learnt looks there.
    labels = rows["label"].to_numpy()
    assert (models[2].predict(pixels[rows.index], verbose=0).argmax(axis=1) == labels).mean() > 0.9
    weights = keras.Model(models[2].input, classifier.attention(models[2]))(pixels[rows.index]).numpy()[..., 0]
    square = wanted[..., :3].max(axis=-1).reshape(len(rows), -1).argmax(axis=1)
    assert (weights.argmax(axis=1) == square).mean() > 0.9
