"""Training mirrored over two devices: the loss curve of one, at the same global batch.

In layers without batch normalisation and dropout: each device draws its own noise, and takes statistics of its share.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import ROOT

# A process of its own: devices are divided before TensorFlow is first used.
TRAIN = """
import contextlib, json, sys
from pathlib import Path
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from pipeline.network import training
from pipeline.sections import TrainHead

devices = int(sys.argv[1])
names = [f"CPU:{i}" for i in range(devices)]
strategy = tf.distribute.MirroredStrategy(names) if devices > 1 else tf.distribute.get_strategy()
assert strategy.num_replicas_in_sync == devices
keras.utils.set_random_seed(7)
views = np.random.default_rng(0).normal(size=(2, 96, 16)).astype(np.float32)
labels = np.random.default_rng(1).integers(0, 3, 96)
with strategy.scope():
    x = inputs = keras.Input((16,))
    for units in (32, 16):
        x = keras.layers.Dense(units, "relu")(x)
    network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    training.compiled(network, keras.optimizers.Adam(1e-3))
history = training.fit(
    network, (views, labels), (views[0], labels),
    # The last batch is 24.
    TrainHead(epochs=6, patience=6, batch_size=36, learning_rate=0.001, schedule="constant", class_weights=True),
    seed=0, state=Path(sys.argv[2]), on_epoch=lambda epoch, metrics: None,
)
print(json.dumps(history[["loss", "val_loss"]].to_numpy().tolist()))
"""


def curve(devices: int, state: Path) -> list[list[float]]:
    """Loss and validation loss of each epoch."""
    command = [sys.executable, "-c", TRAIN, str(devices), str(state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_two_mirrored_devices_learn_as_one_at_the_same_global_batch(tmp_path: Path) -> None:
    one, two = (curve(devices, tmp_path / str(devices)) for devices in (1, 2))
    assert one[-1][0] < 0.99 * one[0][0]  # it learns at all
    for epoch, (alone, mirrored) in enumerate(zip(one, two, strict=True)):
        assert mirrored == pytest.approx(alone, rel=1e-4), epoch
