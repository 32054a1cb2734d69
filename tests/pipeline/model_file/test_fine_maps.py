"""Maps of more positions than anybody would see, by each pooling, in the ONNX file: squares of positions are summed."""

import keras
import numpy as np
import onnxruntime
import pytest

from pipeline.model_file import graph
from pipeline.network import classifier, to_onnx
from tests import grad_cam
from tests.toy_backbone import SPACE, SQUARE

pytestmark = pytest.mark.usefixtures("toy_base")


def summed(values: np.ndarray, side: int) -> np.ndarray:
    """[…, n, n] to […, side, side]: each position cut into as many as make n × side a side, then counted by squares."""
    n = values.shape[-1]
    fine = values.repeat(side, axis=-2).repeat(side, axis=-1) / side**2
    return fine.reshape(*values.shape[:-2], side, n, side, n).sum(axis=(-3, -1))


@pytest.mark.parametrize("pooling", ["average", "attention", "moments"])
@pytest.mark.parametrize("positions", [14, 15, 28, 31])
def test_a_map_has_at_most_14_positions_a_side_and_each_is_what_its_square_gives(pooling: str, positions: int) -> None:
    keras.utils.set_random_seed(2)
    size = positions * SQUARE
    whole = classifier.build(size, 4, "toy", pooling)
    squares = np.random.default_rng(0).integers(0, 256, (2, positions, positions, 3)).astype(np.uint8)
    images = squares.repeat(SQUARE, axis=1).repeat(SQUARE, axis=2)
    proto = to_onnx.to_onnx(graph.contract_function(whole, 1.0, SPACE), size, whole.weights)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = dict(zip((o.name for o in session.get_outputs()), session.run(None, {"image": images}), strict=True))
    of_positions = (grad_cam.contributions if pooling == "attention" else grad_cam.gradient_times_maps)(whole, images)
    wanted = summed(of_positions, 14)
    assert wanted.min() < 0 < wanted.max()
    np.testing.assert_allclose(found["cam"], np.maximum(wanted, 0), atol=1e-4 * np.abs(wanted).max())
    if pooling == "attention":
        weights = keras.Model(whole.input, classifier.attention(whole))(images, training=False).numpy()
        np.testing.assert_allclose(found["attention"], summed(weights.reshape(2, positions, positions), 14), rtol=1e-4)
        np.testing.assert_allclose(found["attention"].sum((1, 2)), 1, rtol=1e-4)
