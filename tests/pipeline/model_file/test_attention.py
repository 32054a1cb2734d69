"""Maps of a network that pools by attention, on 7 × 7 positions: closed form, ONNX, INT8, and what each map tells."""

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from pipeline.evaluation import randomisation
from pipeline.model_file import graph, onnx_model, quantise
from pipeline.network import classifier, pooling, to_onnx
from tests import grad_cam, toy_backbone
from tests.toy_backbone import SPACE, SQUARE

SIZE, SIDE = 7 * SQUARE, 7
pytestmark = pytest.mark.usefixtures("toy_base")


def answers(whole: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    call = graph.contract_function(whole, 1.0, SPACE)
    return {name: tensor.numpy() for name, tensor in call(tf.constant(images)).items()}


@pytest.fixture(scope="module")
def whole(toy_base: None) -> keras.Model:
    """Of random weights, and each class beside its opposite, so that the maps of both tell a contribution's sign."""
    keras.utils.set_random_seed(2)
    whole = classifier.build(SIZE, 6, "toy", "attention")
    rng = np.random.default_rng(0)
    for layer in whole.layers:
        if layer.weights:
            layer.set_weights([2 * w if w.ndim > 1 else w + rng.uniform(0, 0.4, w.shape) for w in layer.get_weights()])
    kernel, bias = whole.get_layer("logits").get_weights()
    whole.get_layer("logits").set_weights([np.concatenate([kernel[:, :3], -kernel[:, :3]], axis=1), bias])
    return whole


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    squares = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.uint8)
    return squares.repeat(SQUARE, axis=1).repeat(SQUARE, axis=2)


@pytest.fixture(scope="module")
def proto(whole: keras.Model) -> onnx.ModelProto:
    return to_onnx.to_onnx(graph.contract_function(whole, 1.0, SPACE), SIZE, whole.weights)


def test_the_map_is_the_contribution_as_tensorflow_differentiates_it(whole: keras.Model, images: np.ndarray) -> None:
    found, wanted = answers(whole, images), grad_cam.contributions(whole, images)
    assert wanted.min() < 0 < wanted.max()
    np.testing.assert_allclose(found["cam"], np.maximum(wanted, 0), atol=1e-5 * np.abs(wanted).max())


def test_contributions_sum_to_the_logits_linear_part(whole: keras.Model, images: np.ndarray) -> None:
    cam = answers(whole, images)["cam"]
    signed = cam[:, :3] - cam[:, 3:]  # what speaks against a class speaks for its opposite
    assert signed.min() < 0 < signed.max()
    head = keras.Model(classifier.embedding(whole), whole.get_layer("logits").output)
    pooled = keras.Model(whole.input, classifier.embedding(whole))(images, training=False)
    with tf.autodiff.ForwardAccumulator(pooled, pooled) as along:  # how the logits grow with the embedding's length
        logits = head(pooled, training=False)
    np.testing.assert_allclose(signed.sum(axis=(2, 3)), along.jvp(logits)[:, :3], rtol=1e-4, atol=1e-4)


def test_attention_is_a_share_of_each_position_and_the_embedding_is_what_it_weighs(
    whole: keras.Model, images: np.ndarray
) -> None:
    """Against the formula of the paper (Ilse et al. 2018, equation 9), in NumPy."""
    found = answers(whole, images)
    maps = keras.Model(whole.input, classifier.feature_maps(whole))(images, training=False).numpy()
    x = maps.reshape(len(images), -1, maps.shape[-1])
    layers = (whole.get_layer(f"head_attention_{name}") for name in ("tanh", "gate", "scores"))
    (v, b), (u, c), (w, d) = ([values.squeeze() for values in layer.get_weights()] for layer in layers)
    scores = np.exp((np.tanh(x @ v + b) / (1 + np.exp(-(x @ u + c)))) @ w + d)
    shares = scores / scores.sum(axis=1, keepdims=True)
    assert np.ptp(shares) > 0.005
    np.testing.assert_allclose(found["attention"], shares.reshape(-1, SIDE, SIDE), rtol=1e-4)
    np.testing.assert_allclose(found["embedding"], np.einsum("np,npd->nd", shares, x), rtol=1e-4)


def test_onnx_gives_what_keras_gives(whole: keras.Model, images: np.ndarray, proto: onnx.ModelProto) -> None:
    wanted = answers(whole, images) | {"probabilities": whole(images, training=False).numpy()}
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    assert set(names) == set(wanted) == {"probabilities", "embedding", "unlikeness", "cam", "attention"}
    assert [each.version for each in proto.opset_import if not each.domain] == [18]
    for name, found in zip(names, session.run(names, {"image": images}), strict=True):
        assert found.shape == wanted[name].shape
        np.testing.assert_allclose(found, wanted[name], rtol=1e-4, atol=1e-5)


def test_int8_rounds_the_base_and_leaves_attention_as_it_is(proto: onnx.ModelProto, images: np.ndarray) -> None:
    quantised = quantise.quantise(proto, images)
    attention = onnx_model.leads_to(quantised, "embedding") - onnx_model.base(quantised)
    kinds = {part: {n.op_type for n in quantised.graph.node if (n.name in attention) == part} for part in (True, False)}
    rounds = {"QuantizeLinear", "DequantizeLinear"}
    assert {"Conv", "Tanh", "Sigmoid", "Softmax"} <= kinds[True]
    assert not rounds & kinds[True]
    assert rounds <= kinds[False]
    ours, theirs = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(["probabilities", "attention"], {"image": images})
        for each in (quantised, proto)
    )
    assert np.abs(ours[0] - theirs[0]).max() < 0.02
    assert np.ptp(theirs[1]) > 0.01
    assert np.abs(ours[1] - theirs[1]).sum(axis=(1, 2)).max() < 0.05  # of shares that sum to 1


def test_attention_is_shuffled_with_the_head(proto: onnx.ModelProto, images: np.ndarray, tmp_path: Path) -> None:
    onnx.save(proto, tmp_path / "m.onnx")
    names = randomisation.kernels(proto)
    values = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    assert [values[name].squeeze().shape for name in names["base"]] == [(4, 3), (8, 4)]
    assert [values[name].squeeze().shape for name in names["head"]].count((pooling.HIDDEN, 8)) == 2
    for part, cam in randomisation.maps(tmp_path / "m.onnx", images, [1]):
        chosen = names["head"] + randomisation.last(names["base"], randomisation.PARTS[part])
        after = randomisation.shuffled(values, chosen, seed=1)
        other = onnx.load(tmp_path / "m.onnx")
        for each in other.graph.initializer:
            if each.name in after:
                each.CopyFrom(onnx.numpy_helper.from_array(after[each.name], each.name))
        [wanted] = onnxruntime.InferenceSession(other.SerializeToString()).run(["cam"], {"image": images})
        np.testing.assert_allclose(cam, wanted, rtol=1e-4, atol=1e-6)


RED, BLUE = (230, 0, 0), (0, 0, 255)


def smear(squares: dict[tuple[int, int], tuple[int, int, int]]) -> np.ndarray:
    """A dark image with some squares, by row and column, in a colour: uint8 [1, S, S, 3]."""
    image = np.full((1, SIZE, SIZE, 3), 10, np.uint8)
    for (row, column), colour in squares.items():
        image[0, row * SQUARE : (row + 1) * SQUARE, column * SQUARE : (column + 1) * SQUARE] = colour
    return image


def network(pooling: str, channel: int, strength: float = 20) -> keras.Model:
    """Class 0 is how red the pooled square is; attention goes to squares that have much of a channel."""
    whole = classifier.build(SIZE, 2, "toy", pooling)
    toy_backbone.tells_colours(whole)
    toy_backbone.tells_classes(whole)
    if pooling == "attention":
        for name in ("tanh", "gate", "scores"):
            layer = whole.get_layer(f"head_attention_{name}")
            layer.set_weights([0 * values for values in layer.get_weights()])
        kernel, bias = whole.get_layer("head_attention_tanh").get_weights()
        kernel[..., channel, 0] = 1
        whole.get_layer("head_attention_tanh").set_weights([kernel, bias])
        kernel, bias = whole.get_layer("head_attention_scores").get_weights()
        kernel[..., 0, 0] = strength
        whole.get_layer("head_attention_scores").set_weights([kernel, bias])
    return whole


def highest(grid: np.ndarray) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(grid.argmax(), grid.shape)))


@pytest.mark.parametrize("place", [(2, 5), (0, 6), (6, 0)])
def test_where_one_position_carries_the_class_it_is_the_highest_of_every_map(place: tuple[int, int]) -> None:
    image = smear({place: RED})
    average, attention = answers(network("average", 0), image), answers(network("attention", 0), image)
    assert highest(average["cam"][0, 0]) == place
    assert highest(attention["cam"][0, 0]) == place
    assert highest(attention["attention"][0]) == place
    assert attention["cam"][0, 0].max() > 0.9 * attention["cam"][0, 0].sum()  # where an average has all squares alike


def test_the_contribution_is_where_the_answer_comes_from_and_the_other_two_maps_need_not_be() -> None:
    """A strong square that attention passes over, a weaker one that it takes, and one that it takes most, for nothing.

    Which of them the answer rests on is asked of the network itself: each is painted dark in turn.
    """
    passed, taken, empty = (1, 1), (3, 4), (5, 2)
    squares = {passed: RED, taken: (160, 0, 220), empty: BLUE}
    whole = network("attention", channel=2)
    found = answers(whole, smear(squares))

    def logit(squares: dict[tuple[int, int], tuple[int, int, int]]) -> float:
        logits = keras.Model(whole.input, whole.get_layer("logits").output)(smear(squares), training=False)
        return float(logits[0, 0])

    falls = {one: logit(squares) - logit({at: squares[at] for at in squares if at != one}) for one in squares}
    assert max(falls, key=falls.__getitem__) == highest(found["cam"][0, 0]) == taken
    assert highest(found["attention"][0]) == empty
    assert highest(answers(network("average", 0), smear(squares))["cam"][0, 0]) == passed
