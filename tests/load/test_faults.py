"""What breaks around a server under load: no answer is wrong, and none is lost.

Everything is real and on loopback: processes that are killed, an MLflow server, a full disk, clients that stall.
"""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leukdetect.contract import FILES, SHA256_TAGS
from pipeline import stage
from tests import tiny_model
from tests.conftest import require
from tests.load.clients import IMAGES, Tally, asking
from tests.load.mutations import SEEDS, mutate
from tests.memory import resident
from tests.server import ROOT, Server, running

pytestmark = [
    pytest.mark.slow,
    # MLflow uses a part of SQLAlchemy that is to go.
    pytest.mark.filterwarnings("ignore:The ``noload``:sqlalchemy.exc.SADeprecationWarning"),
]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def ended_three_times_under_load(model_file: Path, folder: Path, end: Callable[[Server], object]) -> Tally:
    """Clients ask, and ask again what was not answered, while the server ends and another takes its port."""
    flags = ("--model", str(model_file), "--port", str(free_port()))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(folder, *flags))
        with asking(server.url, again=True) as tally:
            for _ in range(3):
                time.sleep(1)
                end(server)
                server = stack.enter_context(running(folder, *flags))
            time.sleep(1)
    assert (tally.wrong, tally.lost) == ([], 0)
    assert tally.answered > 100
    return tally


def test_killed_and_started_again_under_load_every_request_is_answered_in_the_end(
    model_file: Path, tmp_path: Path
) -> None:
    def kill(server: Server) -> None:
        server.process.kill()
        server.process.wait()

    tally = ended_three_times_under_load(model_file, tmp_path, kill)
    assert tally.failures, "the kill was to be noticed"


def test_sigterm_under_load_loses_no_request(model_file: Path, tmp_path: Path) -> None:
    def stop(server: Server) -> None:
        assert server.stop() == 0

    tally = ended_three_times_under_load(model_file, tmp_path, stop)
    # Until the next server listens nobody can connect; but no connection breaks that a client has sent a request on.
    assert set(tally.failures) <= {"ConnectError"}


def test_clients_that_vanish_stall_or_dribble_do_not_touch_the_others(model_file: Path, tmp_path: Path) -> None:
    body = IMAGES["pre"]
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with running(tmp_path, "--model", str(model_file), "--read-seconds", "3") as server:
        address = ("127.0.0.1", httpx.URL(server.url).port)
        with contextlib.ExitStack() as stack, asking(server.url) as tally:
            stalled = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
            for number, connection in enumerate(stalled):
                connection.sendall(head[: number % len(head)] if number % 2 else head + body[: number * 5])
            for number in range(300):
                with socket.create_connection(address) as vanishing:
                    vanishing.sendall(head + body[: number * 7 % len(body)])
                    if number % 3 == 0:  # a reset, not a goodbye
                        vanishing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with socket.create_connection(address, timeout=10) as dribbling:
                for byte in (head + body)[: len(head) + 20]:
                    dribbling.sendall(bytes([byte]))
                    time.sleep(0.02)
                assert dribbling.recv(100).startswith(b"HTTP/1.1 408")
            assert httpx.get(f"{server.url}/livez").status_code == 200
            stalled[1].settimeout(60)
            assert stalled[1].recv(1) == b""  # it never sent more than a byte of a head
        assert server.stop() == 0  # the stalled ones do not hold it up
    assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
    assert tally.answered > 100


@pytest.fixture(scope="module")
def mutating(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A mutated header may ask for many megapixels; the largest of them leaves a high-water mark that is no growth.
    flags = ["--model", str(model_file), "--max-pixels", "1000000"]
    with running(tmp_path_factory.mktemp("mutating"), *flags) as server:
        yield server


def test_ten_thousand_mutated_images_crash_nothing_and_grow_nothing(mutating: Server) -> None:
    count, sizes = itertools.count(), {}
    with httpx.Client(base_url=mutating.url, timeout=20) as client:

        @settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32 - 1))
        def an_image_is_answered_or_refused_with_a_reason(kind: str, seed: int) -> None:
            data = mutate(SEEDS[kind], np.random.default_rng(seed))
            answer = client.post("/predict", content=data)
            assert answer.status_code in (200, 413, 415, 422), answer.text
            if answer.status_code == 200:
                assert answer.json()["decision"] in ("report", "refer")
            else:
                assert answer.json()["detail"]
            if (number := next(count)) % 1000 == 0:
                sizes[number] = resident(mutating.process.pid)

        an_image_is_answered_or_refused_with_a_reason()
    assert next(count) >= 10_000
    assert mutating.process.poll() is None
    early, late = sizes[2000], sizes[max(sizes)]
    assert late < early + 30e6, sizes


class Mlflow:
    """A real MLflow server with tiny models, that a test may kill and start again."""

    def __init__(self, folder: Path, empty_database: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        shutil.copy(empty_database, folder / "mlflow.db")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Nothing where it runs already."""
        if self.process:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "mlflow.log").open("ab") as log:
            # A session of its own, since its children are to be killed with it.
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError((self.folder / "mlflow.log").read_text())

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None

    def add(self, number: int, **changes: Any) -> str:
        """Uploads a version and moves the alias to it."""
        import mlflow

        source = self.folder / f"model-{number}" / "artifacts"
        tiny_model.write(source / "leukdetect.onnx", **changes)
        tiny_model.write(source / "leukdetect.int8.onnx", precision="int8", **changes)
        client = mlflow.MlflowClient(self.url)
        with contextlib.suppress(mlflow.exceptions.MlflowException):  # it is there already
            client.create_registered_model("leukdetect")
        run = client.create_run("0")
        client.log_artifacts(run.info.run_id, str(source), "model/artifacts")
        tags = {tag: stage.sha256(source / FILES[precision]) for precision, tag in SHA256_TAGS.items()}
        version = client.create_model_version("leukdetect", f"{run.info.artifact_uri}/model", run.info.run_id, tags)
        client.set_registered_model_alias("leukdetect", "champion", version.version)
        return str(version.version)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path_factory.mktemp("registry"), empty_database)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def registry(mlflow_server: Mlflow) -> Mlflow:
    """One that runs; the tests before may have left versions."""
    mlflow_server.start()
    return mlflow_server


def wait_until(server: Server, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, server.log_file.read_text()
        time.sleep(0.1)


def wait_for_version(server: Server, version: str) -> None:
    wait_until(server, lambda: httpx.get(f"{server.url}/health").json()["model"]["version"] == version)


def shows(server: Server, sample: str) -> bool:
    return sample in httpx.get(f"{server.url}/metrics").text.splitlines()


def test_fifty_swaps_under_load_fail_no_request(registry: Mlflow, tmp_path: Path) -> None:
    import mlflow

    versions = [registry.add(number, bias=8.0 + number) for number in (1, 2, 3)]  # of which two stay in memory
    client = mlflow.MlflowClient(registry.url)
    keys = tmp_path / "keys.txt"
    key = subprocess.run(
        [sys.executable, "-m", "serving.keys", "operator", "--role", "admin", "--append", str(keys)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()[0]  # fmt: skip
    admin = {"Authorization": f"Bearer {key}"}
    flags = ("--mlflow-tracking-uri", registry.url, "--watch-seconds", "0", "--keys-file", str(keys))
    with running(tmp_path, *flags) as server, asking(server.url, pause=0.01, headers=admin) as tally:
        sizes = []
        for swap in range(50):
            client.set_registered_model_alias("leukdetect", "champion", versions[swap % 3])
            answer = httpx.post(f"{server.url}/admin/reload", headers=admin, timeout=30)
            assert answer.json()["result"] == "switched", answer.text
            sizes.append(resident(server.process.pid))
    assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
    assert set(tally.versions) == set(versions)
    assert sizes[-1] < sizes[10] + 30e6, sizes


def test_a_disk_that_is_full_while_downloading_changes_nothing_and_leaves_nothing(
    registry: Mlflow, tmp_path: Path
) -> None:
    disk = tmp_path / "small-disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)], capture_output=True)
    require(mounted.returncode == 0, "mounting a small disk needs more rights than these")
    try:
        first = registry.add(1)
        flags = ("--mlflow-tracking-uri", registry.url, "--watch-seconds", "0.5", "--cache-dir", str(disk))
        feedback = ("--feedback-db", str(tmp_path / "feedback.db"))
        with running(tmp_path, *flags, *feedback) as server, asking(server.url, pause=0.05) as tally:
            filler = disk / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
            second = registry.add(2)
            wait_until(server, lambda: not shows(server, 'leukdetect_reloads_total{result="failed"} 0.0'))
            time.sleep(1)
            assert httpx.get(f"{server.url}/health").json()["model"]["version"] == first
            # Every half second it tries again, in a folder that goes with the attempt: what leaked would stay.
            wait_until(server, lambda: not list(disk.glob("leukdetect/.download-*")))
            filler.unlink()
            wait_for_version(server, second)
        assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_registry_is_killed_and_comes_back_and_nobody_notices(registry: Mlflow, tmp_path: Path) -> None:
    first = registry.add(1)
    flags = ("--mlflow-tracking-uri", registry.url, "--watch-seconds", "0.5")
    with running(tmp_path, *flags) as server:
        with asking(server.url, pause=0.05) as tally:
            registry.kill()
            wait_until(server, lambda: shows(server, "leukdetect_registry_reachable 0.0"))
            registry.start()
            second = registry.add(2)
            wait_for_version(server, second)
            time.sleep(0.5)
        assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
        assert set(tally.versions) == {first, second}
        registry.kill()
        assert server.stop() == 0
    with running(tmp_path, *flags) as server:  # a cold start while it is down
        assert httpx.get(f"{server.url}/health").json()["model"]["version"] == second
        with asking(server.url) as tally:
            time.sleep(1)
        assert (tally.wrong, tally.lost, tally.failures) == ([], 0, {})
