"""Downloading the ImageNet weights: Keras's own code, against a stand-in server on loopback."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

NAME = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"

# Only the address and the checksum are the stand-in's; in a process of its own, since Keras reads its home once.
LOAD = """
import sys
import numpy as np
from pipeline import model, stage
from keras.src.applications import resnet
resnet.BASE_WEIGHTS_PATH, resnet.WEIGHTS_HASHES["resnet50"] = sys.argv[1], ("", sys.argv[2])
def main():
    whole = model.build(32, 4)
    model.load_base_weights(whole, "imagenet")
    np.save("kernel.npy", whole.get_layer("conv1_conv").get_weights()[0])
stage.run(main)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the old HDF5 layout in which the real ones are published."""
    folder = tmp_path_factory.mktemp("published")
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    with h5py.File(folder / NAME, "w") as file:
        layers = base.layers
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [f"{layer.name}/{i}".encode() for i in range(len(layer.weights))]
            for i, value in enumerate(layer.get_weights()):
                group.create_dataset(f"{layer.name}/{i}", data=value)
    np.save(folder / "kernel.npy", base.get_layer("conv1_conv").get_weights()[0])
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def load(folder: Path, address: str, digest: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"KERAS_HOME": str(folder / "keras"), "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        [sys.executable, "-c", LOAD, address, digest], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_downloaded_weights_arrive_with_the_first_kernel_turned_to_rgb(
    server: str, published: Path, tmp_path: Path
) -> None:
    digest = hashlib.md5((published / NAME).read_bytes()).hexdigest()
    result = load(tmp_path, server, digest)
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "kernel.npy")[:, :, ::-1], np.load(published / "kernel.npy"))


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    result = load(tmp_path, "http://127.0.0.1:9/", "0" * 32)  # the discard port: nothing listens
    assert result.returncode == 1
    assert "the ImageNet weights could not be downloaded" in result.stderr
    assert "set features.weights in params.yaml to its path" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_checksum_is_not_used(server: str, tmp_path: Path) -> None:
    result = load(tmp_path, server, "0" * 32)
    assert result.returncode == 1
    assert "could not be downloaded" in result.stderr
    assert not (tmp_path / "kernel.npy").exists()
