"""The network: counts, cuts, preprocessing and the trainable part, against keras.applications itself."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.network import classifier
from pipeline.stage import Problem

SIZE = 64


@pytest.fixture(scope="module")
def whole(base_weights: Path) -> keras.Model:
    keras.utils.set_random_seed(1)
    whole = classifier.build(SIZE, 4)
    classifier.load_base_weights(whole, str(base_weights))
    return whole


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)


def run(part: keras.Model, x: np.ndarray) -> np.ndarray:
    return part(x, training=False).numpy()


def count(weights: list[keras.Variable]) -> int:
    return sum(int(np.prod(w.shape)) for w in weights)


def test_the_base_sees_what_keras_applications_would_feed_it(
    whole: keras.Model, base_weights: Path, images: np.ndarray
) -> None:
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    base.load_weights(base_weights)
    expected = run(base, keras.applications.resnet50.preprocess_input(images.astype(np.float32)))
    ours = run(keras.Model(whole.input, classifier.feature_maps(whole)), images)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_papers_top_30_are_the_last_30_of_175_layers(whole: keras.Model) -> None:
    names = classifier.base_layers(whole)
    assert len(names) + 1 == 175  # and the input
    assert names[-30] == "conv5_block1_1_relu"


@pytest.mark.parametrize(("batch_norm", "expected"), [(False, 14_987_140), (True, 15_008_644)])
def test_phase_2_trains_15_million_weights_not_24(whole: keras.Model, batch_norm: bool, expected: int) -> None:
    part = classifier.trainable_part(whole, classifier.boundary(whole, "conv5_block1_1_relu"))
    classifier.set_trainable(part, classifier.base_layers(whole, "conv5_block1_1_relu"), batch_norm)
    assert count(part.trainable_weights) == expected


@pytest.mark.parametrize(
    ("trainable_from", "cut", "halved"),
    [
        ("conv5_block1_1_relu", "conv4_block6_out", True),
        ("conv5_block2_1_conv", "conv5_block1_out", False),
        ("conv4_block1_1_conv", "conv3_block4_out", True),
        ("conv2_block1_1_conv", "pool1_pool", False),
    ],
)
def test_cutting_the_network_loses_nothing(
    whole: keras.Model, images: np.ndarray, trainable_from: str, cut: str, halved: bool
) -> None:
    assert classifier.boundary(whole, trainable_from) == cut
    assert classifier.halves(whole, cut) is halved
    activations = run(classifier.frozen_part(whole, cut), images)
    assert np.array_equal(run(classifier.trainable_part(whole, cut), activations), run(whole, images))


def test_everything_trainable_means_no_cut(whole: keras.Model, images: np.ndarray) -> None:
    assert classifier.boundary(whole, "all") is None
    assert np.array_equal(run(classifier.trainable_part(whole, None), images), run(whole, images))


def test_what_a_part_learns_comes_back_to_the_whole(whole: keras.Model, images: np.ndarray) -> None:
    other = classifier.build(SIZE, 4)
    part = classifier.trainable_part(whole, None)
    classifier.copy_weights(part, other)
    assert np.array_equal(run(other, images), run(whole, images))


def test_frozen_batch_normalisation_stays_as_it_was_while_training(whole: keras.Model, images: np.ndarray) -> None:
    part = classifier.trainable_part(whole, None)
    classifier.set_trainable(part, classifier.base_layers(whole), batch_norm=False)
    before = part.get_layer("conv5_block3_3_bn").get_weights()
    part.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    part.fit(images, np.array([0, 1, 2]), epochs=1, verbose=0)
    after = part.get_layer("conv5_block3_3_bn").get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_saved_model_loads_without_any_of_our_code(whole: keras.Model, images: np.ndarray, tmp_path: Path) -> None:

    whole.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import keras, numpy as np; m = keras.models.load_model('model.keras');"
        "np.save('out.npy', m(np.load('images.npy'), training=False).numpy())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert np.allclose(np.load(tmp_path / "out.npy"), run(whole, images), atol=1e-6)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(Problem, match="does not fit ResNet50 without its top"):
        classifier.load_base_weights(classifier.build(SIZE, 4), str(tmp_path / "other.weights.h5"))


def test_missing_weights_are_named() -> None:
    with pytest.raises(Problem, match=r"no file nowhere\.weights\.h5"):
        classifier.load_base_weights(classifier.build(SIZE, 4), "nowhere.weights.h5")


def test_an_unknown_layer_is_named(whole: keras.Model) -> None:
    with pytest.raises(Problem, match="no layer 'conv6_block1_out'"):
        classifier.boundary(whole, "conv6_block1_out")


def test_a_layer_that_a_short_base_has_not_is_named_with_one_it_has() -> None:
    short = classifier.build(SIZE, 4, "VGG16", last_layer=8)
    with pytest.raises(Problem, match=r"no layer 'block5_conv1'; .* of its 13 layers, such as block1_conv1"):
        classifier.boundary(short, "block5_conv1")
