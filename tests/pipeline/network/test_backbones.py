"""Every backbone: its own preprocessing, its cut, its graph and its Grad-CAM, on random weights."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras.applications import densenet, efficientnet_v2, inception_v3, resnet50, vgg16
from scipy.special import softmax

from pipeline.model_file import calibration, graph, quantise
from pipeline.network import classifier, to_onnx
from pipeline.network.backbones import BACKBONES
from tests import grad_cam

SIZE, TEMPERATURE = 80, 1.7
MODULES = {
    "ResNet50": resnet50,
    "VGG16": vgg16,
    "InceptionV3": inception_v3,
    "DenseNet121": densenet,
    "EfficientNetV2B0": efficientnet_v2,
}


@pytest.fixture(scope="module", params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(name: str) -> keras.Model:
    """As keras.applications makes it, on its own preprocessing; batch statistics as after training."""
    keras.utils.set_random_seed(5)
    base = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    rng = np.random.default_rng(0)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            *scale, beta, mean, variance = layer.get_weights()
            layer.set_weights([*scale, beta + rng.normal(0, 0.1, beta.shape), mean, variance * 1.5])
    return base


@pytest.fixture(scope="module")
def whole(name: str, base: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> keras.Model:
    path = tmp_path_factory.mktemp(name) / "base.weights.h5"
    base.save_weights(path)
    whole = classifier.build(SIZE, 4, name)
    classifier.load_base_weights(whole, str(path), name)
    return whole


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def space(whole: keras.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    width = classifier.low_level(whole).shape[-1]
    return calibration.fit_unlikeness(np.abs(rng.normal(size=(40, width))), rng.integers(0, 4, 40), 4)


@pytest.fixture(scope="module")
def proto(whole: keras.Model, space: dict[str, np.ndarray]) -> onnx.ModelProto:
    return to_onnx.to_onnx(graph.contract_function(whole, TEMPERATURE, space), SIZE, whole.weights)


def run(part: keras.Model, x: np.ndarray) -> np.ndarray:
    return part(x, training=False).numpy()


def close(ours: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max())


def test_it_sees_what_keras_applications_would_feed_it(
    name: str, base: keras.Model, whole: keras.Model, images: np.ndarray
) -> None:
    expected = run(base, MODULES[name].preprocess_input(images.astype(np.float32)))
    assert close(run(keras.Model(whole.input, classifier.feature_maps(whole)), images), expected)


def test_its_low_level_features_are_early_and_of_length_1(name: str, whole: keras.Model, images: np.ndarray) -> None:
    layer, last = whole.get_layer(BACKBONES[name].low_level), classifier.feature_maps(whole)
    assert last.shape[1] < layer.output.shape[1] < SIZE / 2
    features = run(keras.Model(whole.input, classifier.low_level(whole)), images)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_cutting_it_anywhere_loses_nothing(whole: keras.Model, images: np.ndarray, share: float) -> None:
    names = classifier.base_layers(whole)
    trainable_from = names[int(share * len(names))]
    cut = classifier.boundary(whole, trainable_from)
    assert cut in names[: names.index(trainable_from)]
    answer = run(classifier.trainable_part(whole, cut), run(classifier.frozen_part(whole, cut), images))
    assert answer == pytest.approx(run(whole, images), abs=1e-6)


@pytest.mark.slow  # ten seconds each; tests/pipeline/model_file/test_graph.py has ResNet-50
def test_onnx_gives_its_probabilities_and_its_grad_cam(
    whole: keras.Model, proto: onnx.ModelProto, images: np.ndarray
) -> None:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    probabilities, embedding, cam = session.run(["probabilities", "embedding", "cam"], {"image": images})
    maps, logits = keras.Model(whole.input, [classifier.feature_maps(whole), whole.get_layer("logits").output])(images)
    assert np.abs(probabilities - softmax(logits.numpy() / TEMPERATURE, axis=1)).max() <= 1e-4
    assert close(embedding, maps.numpy().mean(axis=(1, 2)))

    expected = grad_cam.by_tape(whole, images)
    for c in range(4):
        assert np.abs(cam[:, c] - expected[:, c]).max() <= 1e-4 * max(1, expected[:, c].max())


@pytest.mark.slow
def test_it_has_an_int8_file_of_the_same_class(proto: onnx.ModelProto, images: np.ndarray) -> None:
    quantised = onnxruntime.InferenceSession(quantise.quantise(proto, images).SerializeToString())
    plain = onnxruntime.InferenceSession(proto.SerializeToString())
    ours, theirs = (s.run(["probabilities"], {"image": images})[0] for s in (quantised, plain))
    assert np.abs(ours - theirs).max() <= 0.1
