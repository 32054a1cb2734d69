"""A registry that does not end: every exchange with it has a budget of seconds and bytes, whatever it sends."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from leukdetect import model_file, registry
from leukdetect.contract import FILES, SHA256_TAGS
from leukdetect.model_file import GoldenError
from leukdetect.registry import DamagedError, Located, Registry, RegistryError, discard
from tests import tiny_model
from tests.memory import forget_peak, peak
from tests.project import ROOT

ALIAS = ("leukdetect", "champion")
PIECE = b" " * 65_536
CONTENT = b"a model file"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
WHOLE = {"alias": "whole", "list": "whole", "file": "whole"}


class StandIn(ThreadingHTTPServer):
    """What of MLflow's server is asked for. `manner`: how it answers each question: whole, endless or trickling."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manner = dict(WHOLE)
        self.hashed = True


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/alias"):
            self._send("alias", json.dumps({"model_version": self._version()}).encode())
        elif path.endswith("registered-models/get"):
            self._send("name", json.dumps({"registered_model": {"name": "leukdetect"}}).encode())
        elif path.endswith("model-versions/get"):
            self._send("version", json.dumps({"model_version": self._version()}).encode())
        elif path.endswith("/get-download-uri"):
            self._send("uri", json.dumps({"artifact_uri": "mlflow-artifacts:/v"}).encode())
        elif path == ARTIFACTS:
            files = [{"path": name, "is_dir": False, "file_size": len(CONTENT)} for name in FILES.values()]
            self._send("list", json.dumps({"files": files}).encode())
        else:
            self._send("file", CONTENT)

    def _version(self) -> dict[str, Any]:
        hashes = {tag: hashlib.sha256(CONTENT).hexdigest() for tag in SHA256_TAGS.values()}
        tags = [{"key": key, "value": value} for key, value in hashes.items()] if self.server.hashed else []
        return {"name": "leukdetect", "version": "1", "creation_timestamp": 1, "tags": tags}

    def _send(self, what: str, body: bytes) -> None:
        manner = self.server.manner.get(what, "whole")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if manner == "whole":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):  # it was hung up on
            while manner != "whole":
                self.wfile.write(PIECE if manner == "endless" else b" ")
                self.wfile.flush()
                time.sleep(0 if manner == "endless" else 0.1)
            self.wfile.write(body[: len(body) // 2] if manner == "half" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def asked(stand_in: StandIn, tmp_path: Path) -> Registry:
    """It has answered once, so that the process which asks has started."""
    stand_in.manner, stand_in.hashed = dict(WHOLE), True
    found = Registry(f"http://127.0.0.1:{stand_in.server_address[1]}", tmp_path)
    assert found.ask(*ALIAS)
    return found


def test_an_answer_that_drips_is_given_up_in_time_and_the_next_question_is_answered(
    stand_in: StandIn, asked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.manner["alias"] = "trickling"
    with monkeypatch.context() as patched:
        patched.setattr(registry, "ASK_SECONDS", 1.5)
        with pytest.raises(RegistryError, match=r"could not be had from http://127\.0\.0\.1.*took longer than 1.5 s"):
            asked.ask(*ALIAS)
    stand_in.manner["alias"] = "whole"
    assert asked.ask(*ALIAS)


def test_an_exchange_can_be_given_up_and_keeps_no_process_from_ending(stand_in: StandIn, asked: Registry) -> None:
    stand_in.manner["alias"] = "trickling"
    code = (
        "import threading, time; from pathlib import Path; from leukdetect.registry import Registry;"
        f"registry = Registry({asked.tracking_uri!r}, Path({str(asked.cache_dir)!r}));"
        f"threading.Thread(target=registry.ask, args={ALIAS}, daemon=True).start(); time.sleep(0.5)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=registry.ASK_SECONDS - 5)
    threading.Timer(0.5, registry.give_up).start()
    with pytest.raises(RegistryError, match="the exchange crashed"):
        asked.ask(*ALIAS)


@pytest.mark.parametrize("what", ["alias", "list"])
def test_an_endless_answer_fills_no_memory(stand_in: StandIn, asked: Registry, what: str) -> None:
    registered = asked.ask(*ALIAS)  # and the child has started
    assert registered
    stand_in.manner[what] = "endless"
    assert registry._mlflow._process
    asking = registry._mlflow._process.pid
    forget_peak()
    before, most = peak(), []

    def look() -> None:
        with suppress(OSError):  # it has ended
            while True:
                most.append(peak(asking))
                time.sleep(0.02)

    looking = threading.Thread(target=look)
    looking.start()
    with pytest.raises(RegistryError):
        asked.ask(*ALIAS) if what == "alias" else asked.fetch(registered)
    registry._mlflow.close()
    looking.join()
    assert max(most) - most[0] < 500e6
    assert peak() - before < 50e6


def test_a_file_that_does_not_end_is_given_up_and_nothing_of_it_stays(
    stand_in: StandIn, asked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = asked.ask(*ALIAS)
    assert registered
    stand_in.manner["file"] = "endless"
    with monkeypatch.context() as patched:
        patched.setattr(registry, "DOWNLOAD_BYTES", 5_000_000)
        with pytest.raises(RegistryError, match=r"version 1 could not be downloaded .* it sends more than 5 MB"):
            asked.fetch(registered)
    stand_in.manner["file"] = "trickling"
    asked.ask(*ALIAS)  # it runs again
    with monkeypatch.context() as patched:
        patched.setattr(registry, "DOWNLOAD_SECONDS", 1.5)
        with pytest.raises(RegistryError, match=r"could not be downloaded .* took longer than 1.5 s"):
            asked.fetch(registered)
    assert not list(asked.cache_dir.rglob("*.onnx"))
    assert not list(asked.cache_dir.glob("*/.download-*"))
    stand_in.manner["file"] = "whole"
    assert asked.fetch(registered).path.is_dir()


def test_a_version_without_hashes_is_refused_unless_one_asks_for_it(stand_in: StandIn, asked: Registry) -> None:
    stand_in.hashed = False
    registered = asked.ask(*ALIAS)
    assert registered
    with pytest.raises(DamagedError, match=r"no hash of leukdetect\.onnx and leukdetect\.int8\.onnx in its tags"):
        asked.fetch(registered)
    assert not list(asked.cache_dir.rglob("*.onnx"))
    willing = Registry(asked.tracking_uri, asked.cache_dir, unhashed=True)
    located = willing.fetch(registered)
    assert located.sha256 == dict.fromkeys(FILES, hashlib.sha256(CONTENT).hexdigest())
    for name in FILES.values():  # what came then is what has to be there later
        (located.path / name).write_bytes(b"another")
    assert [(willing.fetch(registered).path / name).read_bytes() for name in FILES.values()] == [CONTENT] * 2


def test_what_is_being_loaded_is_not_removed_and_what_is_removed_goes_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "leukdetect/1-1"
    for name in FILES.values():
        tiny_model.write(folder / name)
    left: list[bool] = []

    def pruned(*_: object) -> None:
        discard(folder)  # as another server on the same folder does, or this one's watch
        left.append(all((folder / name).is_file() for name in FILES.values()))
        raise GoldenError("no")

    with monkeypatch.context() as patched:
        patched.setattr(model_file, "_load", pruned)
        with pytest.raises(GoldenError):
            model_file.load(Located(folder, "1"))
    assert left == [True, True]
    monkeypatch.setattr("shutil.rmtree", lambda gone, **_: left.append(folder.exists()))
    discard(folder)
    assert left[2:] == [False]  # before the first of its files was removed
    with pytest.raises(RegistryError, match="another server removed it meanwhile"):
        model_file.load(Located(folder, "1"))


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"fp32": null}', "[" * 9_000, '{"a":' * 1_500, "9" * 9_000, "\udcff"]
)
def test_a_note_of_hashes_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / registry.CAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert registry.came(tmp_path) == {}
