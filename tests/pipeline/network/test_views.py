"""What is stored of a view: float16, and only what float16 holds."""

import numpy as np
import pytest

from pipeline.network import views
from pipeline.network.views import Batch, Work
from pipeline.sections import Augment
from pipeline.stage import Problem

BATCH = Batch(None, np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"])
WORK = Work(Augment(flip=True, rotation=0, zoom=0, brightness=0, stain=0, erase_corner=0, scale_bar=0), seed=0)


def test_activations_are_stored_in_float16_and_the_rest_as_it_is() -> None:
    found = {"inputs": np.full((2, 3), -65504.0, np.float32), "pooled": np.full((2, 3), 1e6, np.float32)}
    stored = views.stored(lambda images: found, WORK, BATCH)
    assert {name: array.dtype for name, array in stored.items()} == {"inputs": np.float16, "pooled": np.float32}
    assert np.array_equal(stored["inputs"], found["inputs"])


@pytest.mark.parametrize("value", [1e5, -1e5, np.nan, np.inf])
def test_what_float16_cannot_hold_is_refused(value: float) -> None:
    activations = np.zeros((2, 3), np.float32)
    activations[1, 1] = value
    with pytest.raises(Problem, match="NaN or beyond float16"):
        views.stored(lambda images: {"inputs": activations}, WORK, BATCH)
