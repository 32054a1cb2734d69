"""Downloading the ImageNet weights: Keras's own code, against a stand-in server on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
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
import json, sys
import numpy as np
from pipeline import stage
from pipeline.network import classifier
from keras.src.applications import resnet
whole, said = classifier.build(32, 4), []
for number, (address, digest) in enumerate(json.loads(sys.argv[1])):
    resnet.BASE_WEIGHTS_PATH, resnet.WEIGHTS_HASHES["resnet50"] = address, ("", digest)
    try:
        classifier.load_base_weights(whole, "imagenet")
        said.append("")
    except stage.Problem as problem:
        said.append(str(problem))
    np.save(f"kernel-{number}.npy", whole.get_layer("conv1_conv").get_weights()[0])
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Attempt:
    """To load the weights: what it said, and the network's first kernel afterwards."""

    said: str
    kernel: np.ndarray


@pytest.fixture(scope="module")
def published(base_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the old HDF5 layout in which the real ones are published."""
    folder = tmp_path_factory.mktemp("published")
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    base.load_weights(base_weights)
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


@pytest.fixture(scope="module")
def server(published: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def attempts(server: str, published: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Attempt]:
    """Without a network, with a wrong checksum, and with the right one."""
    folder = tmp_path_factory.mktemp("home")
    digest = hashlib.md5((published / NAME).read_bytes()).hexdigest()
    nobody = "http://127.0.0.1:9/"  # the discard port: nothing listens
    tries = json.dumps([(nobody, digest), (server, "0" * 32), (server, digest)])
    environment = os.environ | {"KERAS_HOME": str(folder / "keras"), "PYTHONPATH": str(Path.cwd())}
    process = subprocess.run(
        [sys.executable, "-c", LOAD, tries], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout.splitlines()[-1])
    return [Attempt(text, np.load(folder / f"kernel-{number}.npy")) for number, text in enumerate(said)]


def test_downloaded_weights_arrive_with_the_first_kernel_turned_to_rgb(
    attempts: list[Attempt], published: Path
) -> None:
    assert attempts[2].said == ""
    assert np.array_equal(attempts[2].kernel[:, :, ::-1], np.load(published / "kernel.npy"))


def test_no_network_says_what_to_do(attempts: list[Attempt]) -> None:
    assert "the ImageNet weights could not be downloaded" in attempts[0].said
    assert "set features.weights in params.yaml to its path" in attempts[0].said


def test_a_wrong_checksum_is_not_used(attempts: list[Attempt]) -> None:
    assert "could not be downloaded" in attempts[1].said
    assert np.array_equal(attempts[1].kernel, attempts[0].kernel)
    assert not np.array_equal(attempts[2].kernel, attempts[0].kernel)
