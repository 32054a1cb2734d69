"""What can be had without looking at a cell."""

import numpy as np

from pipeline.evaluation import baselines


def test_the_colour_baseline_sees_colour_and_nothing_of_the_shape() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = (
        rng.normal(np.where(labels, 100, 150)[:, None, None, None], 20, (60, 16, 16, 3)).clip(0, 255).astype(np.uint8)
    )
    predicted = baselines.predict(baselines.colours, images[:30], labels[:30], images[30:], seed=0)
    assert (predicted == labels[30:]).all()
    scattered = images[30:].reshape(30, 256, 3)[:, rng.permutation(256)].reshape(30, 16, 16, 3)
    assert (baselines.predict(baselines.colours, images[:30], labels[:30], scattered, seed=0) == predicted).all()
