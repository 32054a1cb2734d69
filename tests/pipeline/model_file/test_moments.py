"""A network cut in the middle of its base, whose embedding is the mean and the deviation of the maps there."""

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from pipeline.evaluation import randomisation
from pipeline.model_file import graph, quantise
from pipeline.network import classifier, to_onnx
from pipeline.stage import Problem
from tests import grad_cam
from tests.toy_backbone import SPACE, SQUARE

SIZE, SIDE = 7 * SQUARE, 7
pytestmark = pytest.mark.usefixtures("toy_base")


@pytest.fixture(scope="module", params=["paper", "linear"])
def whole(request: pytest.FixtureRequest, toy_base: None) -> keras.Model:
    keras.utils.set_random_seed(2)
    whole = classifier.build(SIZE, 4, "toy", "moments", head=request.param)
    rng = np.random.default_rng(0)
    for layer in whole.layers:
        if layer.weights:
            layer.set_weights(
                [
                    2 * w + rng.normal(0, 0.2, w.shape) if w.ndim > 1 else w + rng.uniform(0, 0.4, w.shape)
                    for w in layer.get_weights()
                ]
            )
    return whole


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    squares = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.uint8)
    return squares.repeat(SQUARE, axis=1).repeat(SQUARE, axis=2)


@pytest.fixture(scope="module")
def found(whole: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    call = graph.contract_function(whole, 1.0, SPACE)
    return {name: tensor.numpy() for name, tensor in call(tf.constant(images)).items()}


def test_the_embedding_is_numpys_mean_and_standard_deviation(
    whole: keras.Model, images: np.ndarray, found: dict[str, np.ndarray]
) -> None:
    maps = keras.Model(whole.input, classifier.feature_maps(whole))(images, training=False).numpy()
    wanted = np.concatenate([maps.mean((1, 2)), maps.std((1, 2))], axis=1)
    np.testing.assert_allclose(found["embedding"], wanted, atol=2e-3)  # but for deviations near 0, which have a floor
    assert (maps.std((1, 2)) > 0.01).any()


def test_the_map_is_the_gradient_times_the_features_as_tensorflow_differentiates_them(
    whole: keras.Model, images: np.ndarray, found: dict[str, np.ndarray]
) -> None:
    wanted = grad_cam.gradient_times_maps(whole, images)
    assert wanted.min() < 0 < wanted.max()
    np.testing.assert_allclose(found["cam"], np.maximum(wanted, 0), atol=1e-4 * np.abs(wanted).max())


def test_a_deviation_at_its_floor_gives_nothing_to_the_map(whole: keras.Model) -> None:
    flat = np.full((1, SIZE, SIZE, 3), 128, np.uint8)
    flat[:, :SQUARE, :SQUARE, 0] += 1
    maps = keras.Model(whole.input, classifier.feature_maps(whole))(flat, training=False).numpy()
    assert ((maps.std((1, 2)) > 0) & (maps.std((1, 2)) < 1e-3)).any()
    found = graph.contract_function(whole, 1.0, SPACE)(tf.constant(flat))["cam"].numpy()
    wanted = grad_cam.gradient_times_maps(whole, flat)
    np.testing.assert_allclose(found, np.maximum(wanted, 0), atol=1e-3 * np.abs(wanted).max())


def test_onnx_gives_what_keras_gives_and_int8_quantises_the_base_alone(
    whole: keras.Model, images: np.ndarray, found: dict[str, np.ndarray]
) -> None:
    proto = to_onnx.to_onnx(graph.contract_function(whole, 1.0, SPACE), SIZE, whole.weights)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for name, answer in zip(found, session.run(list(found), {"image": images}), strict=True):
        np.testing.assert_allclose(answer, found[name], atol=2e-4 * max(1, np.abs(found[name]).max()), err_msg=name)
    kernels = randomisation.kernels(proto)
    assert len(kernels["head"]) >= 2, "the answer and the map hold the head's kernels, each shuffled alike"
    quantised = quantise.quantise(proto, images)
    kinds = {node.op_type for node in quantised.graph.node if any("quantized" in name for name in node.output)}
    assert not {"Sqrt", "ReduceMean"} & kinds
    onnx.checker.check_model(quantised)


def test_a_saved_network_is_read_back(whole: keras.Model, images: np.ndarray, tmp_path: Path) -> None:
    whole.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again(images, training=False), whole(images, training=False))


def test_a_base_ends_where_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classifier.build(64, 4, "ResNet50", "moments", "conv3_block4_out")
    assert classifier.embedding(whole).shape[1] == 2 * 512
    assert classifier.feature_maps(whole).shape[1:3] == (8, 8)
    assert classifier.base_layers(whole)[-1] == "conv3_block4_out"
    assert classifier.boundary(whole, "conv3_block1_1_conv") == "conv2_block3_out"
    with pytest.raises(Problem, match=r"model\.last_layer: .*'conv2_block1_out' from conv2_block3_out on"):
        classifier.build(64, 4, "ResNet50", "average", "conv2_block1_out")


@pytest.mark.parametrize(
    ("backbone", "last"),
    [
        ("ResNet50", {8: "conv3_block4_out", 16: "conv4_block6_out"}),
        ("VGG16", {8: "block4_conv3", 16: "block5_conv3"}),
        ("InceptionV3", {8: "mixed2", 16: "mixed7"}),
        ("DenseNet121", {8: "pool3_conv", 16: "pool4_conv"}),
        ("EfficientNetV2B0", {8: "block4a_expand_activation", 16: "block6a_expand_activation"}),
    ],
)
def test_any_base_ends_where_no_path_goes_past_and_a_position_spans_so_many_pixels(
    backbone: str, last: dict[int, str]
) -> None:
    for span, name in last.items():
        whole = classifier.build(96, 4, backbone, last_layer=span)
        assert classifier.base_layers(whole)[-1] == name
        assert 96 / classifier.feature_maps(whole).shape[1] == pytest.approx(span, rel=0.5)
