"""The exported graph against Keras, TensorFlow's own gradients, and the NumPy it was written from."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from scipy.special import softmax

from pipeline.evaluation import randomisation
from pipeline.model_file import calibration, graph, onnx_model, quantise
from pipeline.network import classifier, to_onnx
from tests import grad_cam

SIZE, TEMPERATURE = 64, 1.7


@pytest.fixture(scope="module")
def whole() -> keras.Model:
    keras.utils.set_random_seed(1)
    whole = classifier.build(SIZE, 4)
    bn = whole.get_layer("head_bn")  # as after training: not the identity
    rng = np.random.default_rng(0)
    bn.set_weights([rng.uniform(0.5, 1.5, 256), rng.normal(size=256), rng.normal(size=256), rng.uniform(0.5, 2, 256)])
    return whole


def low_level(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.Model(whole.input, classifier.low_level(whole))(images, training=False).numpy()


@pytest.fixture(scope="module")
def space(whole: keras.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (40, SIZE, SIZE, 3)).astype(np.uint8)
    space = calibration.fit_unlikeness(low_level(whole, seen), rng.integers(0, 4, 40), 16)
    return space | {"scale": np.array(3.0, np.float32)}


@pytest.fixture(scope="module")
def proto(whole: keras.Model, space: dict[str, np.ndarray]) -> onnx.ModelProto:
    return to_onnx.to_onnx(graph.contract_function(whole, TEMPERATURE, space), SIZE, whole.weights)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def answers(proto: onnx.ModelProto, images: np.ndarray) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def test_inputs_and_outputs_are_the_contracts(proto: onnx.ModelProto, answers: dict[str, Any]) -> None:
    assert [value.name for value in proto.graph.input] == ["image"]
    shapes = {name: array.shape for name, array in answers.items()}
    assert shapes == {"probabilities": (5, 4), "embedding": (5, 2048), "unlikeness": (5,), "cam": (5, 4, 2, 2)}


def test_probabilities_are_kerass_at_the_temperature(
    whole: keras.Model, answers: dict[str, Any], images: np.ndarray
) -> None:
    logits = keras.Model(whole.input, whole.get_layer("logits").output)(images, training=False).numpy()
    assert np.abs(answers["probabilities"] - softmax(logits / TEMPERATURE, axis=1)).max() <= 1e-4


def test_unlikeness_is_the_numpy_one(
    whole: keras.Model, answers: dict[str, Any], images: np.ndarray, space: dict[str, np.ndarray]
) -> None:
    expected = calibration.unlikeness(low_level(whole, images), space)
    assert answers["unlikeness"] == pytest.approx(expected, rel=1e-3)


def test_the_closed_form_cam_is_tensorflows_grad_cam(
    whole: keras.Model, answers: dict[str, Any], images: np.ndarray
) -> None:
    assert answers["cam"].max() > 0
    assert np.abs(answers["cam"] - grad_cam.by_tape(whole, images)).max() <= 1e-4


def test_a_rescaled_graph_refers_the_share_of_validation_images_that_was_asked_for(
    proto: onnx.ModelProto, images: np.ndarray, answers: dict[str, Any]
) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    quantise.rescale_unlikeness(copy, float(np.median(answers["unlikeness"])))
    onnx.checker.check_model(copy, full_check=True)
    answer = onnxruntime.InferenceSession(copy.SerializeToString()).run(["unlikeness"], {"image": images})[0]
    assert np.median(answer) == pytest.approx(1, rel=1e-3)
    assert answer == pytest.approx(answers["unlikeness"] / np.median(answers["unlikeness"]), rel=1e-3)


def test_int8_keeps_head_distance_and_maps_in_float(proto: onnx.ModelProto, images: np.ndarray) -> None:
    quantised = quantise.quantise(proto, images)
    kinds = [node.op_type for node in quantised.graph.node]
    assert kinds.count("DequantizeLinear") > 53  # every convolution's weights, at least
    before = onnx_model.leads_to(quantised, "embedding")
    # Rounded once, behind the ReLU, which rounding does as well: none is left on the way.
    assert "Relu" not in {n.op_type for n in quantised.graph.node if n.name in before}
    # What does not lead to the embedding is head, distance and maps: nothing there is rounded.
    assert not [n.name for n in quantised.graph.node if "quantizelinear" in n.op_type.lower() and n.name not in before]
    session = onnxruntime.InferenceSession(quantised.SerializeToString())
    assert session.run(["probabilities"], {"image": images})[0].sum(axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_shuffling_keeps_answer_and_maps_those_of_one_network(
    whole: keras.Model, proto: onnx.ModelProto, images: np.ndarray, answers: dict[str, Any], tmp_path: Path
) -> None:
    before = {each.name: onnx.numpy_helper.to_array(each).squeeze() for each in proto.graph.initializer}

    def copies(kernel: np.ndarray) -> list[str]:
        """Initializers that hold a kernel, as it is or transposed."""
        return [name for name, v in before.items() if any(np.array_equal(v, w) for w in (kernel, kernel.T))]

    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    graph = onnx.load(path)
    shuffled = randomisation.shuffled(
        randomisation.take_out(graph, before), randomisation.kernels(proto)["head"], seed=1
    )
    after = {name: value.squeeze() for name, value in shuffled.items()}
    for layer in ("head_dense_1", "head_dense_2", "logits"):
        kernel = whole.get_layer(layer).get_weights()[0]
        names = copies(kernel)
        assert len(names) == 2, layer  # one for the answer, one for the maps
        first, second = (after[name] if after[name].shape == kernel.shape else after[name].T for name in names)
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, kernel)
        np.testing.assert_array_equal(np.sort(first, axis=None), np.sort(kernel, axis=None))


def test_maps_of_shuffled_weights_are_those_of_the_whole_graph_with_these_weights(
    proto: onnx.ModelProto, images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    names = randomisation.kernels(proto)
    values = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    seen: list[str] = []
    for part, cam in randomisation.maps(path, images, [1, 2]):
        chosen = names["head"] + randomisation.last(names["base"], randomisation.PARTS[part])
        after = randomisation.shuffled(values, chosen, seed=1 + seen.count(part))
        whole = onnx.load(path)
        for each in whole.graph.initializer:
            if each.name in after:
                each.CopyFrom(onnx.numpy_helper.from_array(after[each.name], each.name))
        [wanted] = onnxruntime.InferenceSession(whole.SerializeToString()).run(["cam"], {"image": images})
        np.testing.assert_allclose(cam, wanted, rtol=1e-4, atol=1e-6)
        seen.append(part)
    assert seen == [part for part in randomisation.PARTS for _ in range(2)]


def test_a_share_of_the_base_is_its_last_convolutions(proto: onnx.ModelProto) -> None:
    base = randomisation.kernels(proto)["base"]
    assert len(base) == 53  # convolutions of a ResNet-50
    assert randomisation.last(base, 0.2) == base[-11:]
    assert randomisation.last(base, 0) == []
    assert randomisation.last(base, 1) == base
