"""A server under files that ask for minutes and gigabytes: others are answered in time, and its memory holds."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image

from benchmarks import process
from serving.request.budget import OWN
from tests import bombs, tiny_model
from tests.load.clients import asking, threads
from tests.project import ROOT
from tests.server import Server, running

pytestmark = pytest.mark.slow

MODEL_BYTES = 400e6  # of a server with ResNet-50, beyond one with the tests' tiny model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    return path


@contextmanager
def sending(server: Server, route: str, content: bytes, clients: int, timeout: float) -> Iterator[Counter[int]]:
    """Clients that send one file again and again until the block ends, and leave after `timeout`; 0: they left."""
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            try:
                answer = httpx.post(f"{server.url}{route}", content=content, timeout=timeout)
                statuses[answer.status_code] += 1
                if answer.status_code != 200:
                    assert answer.json()["detail"]
                    done.wait(float(answer.headers.get("Retry-After", 0)))
            except httpx.TransportError:
                statuses[0] += 1

    with threads(send, clients, done):
        yield statuses


def memory(pid: int) -> float:
    """Bytes that the process and all that came of it hold, what they share counted once."""
    return process.total(pid, lambda each: each.memory_full_info().pss)


ATTACKS = ("PNG, profiles", "JPEG, comments", "BMP, runs", "JPEG, padding")


@pytest.mark.parametrize("name", ATTACKS)
def test_two_clients_with_bombs_do_not_keep_others_from_their_answers(
    model_file: Path, tmp_path: Path, name: str
) -> None:
    bomb = bombs.BOMBS[name]()
    with running(tmp_path, "--model", str(model_file)) as server:
        with sending(server, "/predict", bomb, clients=2, timeout=1) as statuses, asking(server.url, 1) as tally:
            time.sleep(6)
        assert statuses[0] > 0, "the clients were to leave"
        # A bystander's answer that is later than its deadline of 2 s would be a 504.
        assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
        assert tally.answered > 50
        time.sleep(0.5)
        [_, helper] = process.family(server.process.pid)  # what was abandoned is ended
        before = sum(helper.cpu_times()[:4])
        time.sleep(1)
        assert sum(helper.cpu_times()[:4]) - before < 0.5
    assert not helper.is_running()


def test_transparent_rotated_images_of_40_megapixels_stay_within_the_manifests_memory(
    model_file: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = bombs.saved("PNG", (8000, 5000), "RGBA", compress_level=1, exif=exif)
    manifest = next(yaml.safe_load_all((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text()))
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "2Gi"
    highest = 0.0
    patience = ("--deadline-ms", "120000", "--max-deadline-ms", "120000")  # one after the other, on a busy machine
    flags = ("--model", str(model_file), *patience, "--request-memory", str(2 * 2**30 - OWN))
    with running(tmp_path, *flags) as server:
        with (
            sending(server, "/predict", image, 16, 150) as predicted,
            sending(server, "/explain", image, 8, 150) as explained,
            asking(server.url, 1, pause=0.2) as tally,
        ):
            until = time.monotonic() + 60
            while not (predicted[200] > 5 and explained[200]) and time.monotonic() < until:
                highest = max(highest, memory(server.process.pid))
                time.sleep(0.05)
        assert predicted[200]
        assert explained[200]
        assert set(predicted + explained) <= {200, 503, 504}
        assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
    assert 600e6 < highest < 2 * 2**30 - MODEL_BYTES, highest


def test_eight_images_of_36_megapixels_at_once_in_little_address_space_are_answered_or_told_to_wait(
    model_file: Path, tmp_path: Path
) -> None:
    image = bombs.saved("PNG", (6000, 6000), "RGBA", compress_level=1)  # more than this server's address space leaves
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -v {1_400_000_000 // 1024}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    flags = ("--model", str(model_file), "--deadline-ms", "30000")
    with running(tmp_path, *flags, python=python) as server:
        with sending(server, "/predict", image, 8, 60) as statuses, asking(server.url, 1, pause=0.1) as tally:
            until = time.monotonic() + 60
            while not (statuses[200] >= 16 and statuses[503]) and time.monotonic() < until:
                time.sleep(0.1)
        assert statuses[200] >= 8
        assert set(statuses) <= {200, 503}
        assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
