"""From the gate to the clients: a real registry, a real server, and clients that never stop asking."""

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline import deploy, register
from pipeline.registry import promotions, servers
from pipeline.stage import Problem
from serving.app import create_app
from serving.models.startup import start
from serving.request.auth import Key, digest_of
from serving.settings import Settings
from tests import tiny_model
from tests.conftest import require
from tests.load.clients import asking
from tests.pipeline import test_register as small
from tests.project import ROOT
from tests.registry import Registry
from tests.server import running, serve, write_keys

ADMIN_KEY = "o" * 43
BETTER_BIAS = 9.0  # the tiny model answers the clients' images alike, with other probabilities
GREEN = tiny_model.jpeg((60, 200, 60))
PATIENCE_MS = 30_000  # a busy machine may be late: that is not what these tests are about


# The gate, as `dvc repro` and the workflow run it


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose good model has been evaluated."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    small.write_recipe(mode="enforce")
    small.write_data()
    small.write_reports()
    small.write_model(small.GOOD)
    return tmp_path


def test_a_worse_model_is_refused_and_a_better_one_reaches_the_clients_without_a_lost_request(project: Path) -> None:
    register.main()
    flags = ("--watch-seconds", "0.5", "--deadline-ms", str(PATIENCE_MS))
    with running(project, *flags) as server, asking(server.url, clients=2, pause=0.02) as tally:
        small.write_model(small.BLIND_TO_PRO)
        command = [sys.executable, "-m", "pipeline.register"]
        refused = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert refused.returncode == 1
        assert "balanced accuracy, new − champion   -0.2500  FAILS" in refused.stdout
        assert "gate.yaml refuses version 2" in refused.stderr
        assert small.aliases() == {"champion": "1", "challenger": "2"}
        time.sleep(1)  # two turns of the server's
        assert httpx.get(f"{server.url}/health").json()["model"]["version"] == "1"

        small.write_model(BETTER_BIAS)
        small.write_reports(balanced_accuracy=0.95)
        register.main()
        assert small.aliases() == {"champion": "3", "previous": "1"}
        until(lambda: "3" in tally.versions[-1:])
    assert (tally.failures, tally.lost, tally.wrong) == ({}, 0, [])
    assert sorted({str(each) for each in tally.versions}) == ["1", "3"]  # never 2
    assert len(tally.request_ids) == tally.answered


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Deployments to an environment


@pytest.fixture
def registry(a_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Version 1 is in production, version 2 passed the gate since."""
    add(a_registry, "production")
    add(a_registry, "champion", bias=BETTER_BIAS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", a_registry.uri)
    monkeypatch.setenv("LEUKDETECT_ADMIN_KEY", ADMIN_KEY)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return a_registry


def add(registry: Registry, alias: str, gate: str = "passed", **fields: Any) -> str:
    version = registry.add(alias, **fields)
    registry.client.set_model_version_tag("leukdetect", version, "gate", gate)
    return version


@contextlib.contextmanager
def production(
    registry: Registry,
    folder: Path,
    alias: str = "production",
    at: tuple[str, int] = ("127.0.0.1", 0),
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[httpx.Client]:
    """A server of that environment; unless it is told to, it does not look for another version within a test."""
    keys = write_keys(
        folder / "keys",
        f"{Key('deploy', 'admin', digest_of(ADMIN_KEY)).line()}\n{Key('lis', 'predict', digest_of('lis')).line()}\n",
    )
    usual: dict[str, Any] = {"watch_seconds": 600, "keys_file": keys, "deadline_ms": PATIENCE_MS}
    own = Settings(
        model=f"models:/leukdetect@{alias}",
        tracking_uri=registry.uri,
        cache_dir=folder / "cache",
        feedback_db=folder / "feedback.db",
        **usual | settings,
    )
    with serve(create_app(own, start(own)), at, **options or {}) as client:
        yield client


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["deploy", "production", *arguments])
    deploy.main()


def address(server: httpx.Client) -> str:
    return str(server.base_url)


def aliases(registry: Registry) -> dict[str, str]:
    """What deployments move."""
    found = registry.client.get_registered_model("leukdetect").aliases
    return {name: str(version) for name, version in found.items() if name.startswith("production")}


def served(server: httpx.Client) -> tuple[str, str | None]:
    health = server.get("/health").json()
    return health["model"]["version"], health["note"]


def test_the_champion_is_deployed_and_verified_and_no_request_is_lost(
    registry: Registry, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        production(registry, tmp_path) as server,
        asking(address(server), clients=2, pause=0.02, headers={"X-API-Key": "lis"}) as tally,
    ):
        until(lambda: tally.answered > 20)
        run(monkeypatch, "--server", address(server))
        assert served(server) == ("2", None)
    assert aliases(registry) == {"production": "2", "production-previous": "1"}
    assert (tally.failures, tally.lost, tally.wrong) == ({}, 0, [])
    assert {"1", "2"} == set(tally.versions)
    told = capfd.readouterr().out
    assert "answers 2 golden images as expected" in told
    assert told.endswith("production is version 2 now. It was version 1.\n")
    assert ADMIN_KEY not in told


def test_a_deployment_of_an_earlier_version_goes_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.move("2", "production")
    with production(registry, tmp_path) as server:
        run(monkeypatch, "--server", address(server), "--version", "1")
        assert served(server) == ("1", None)
        run(monkeypatch, "--server", address(server), "--version", "1")  # again: verifies, and moves nothing
    assert aliases(registry) == {"production": "1", "production-previous": "2"}


def test_without_a_key_the_servers_follow_at_their_next_turn(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKDETECT_ADMIN_KEY", "")
    with production(registry, tmp_path, keys_file=None, watch_seconds=0.2) as server:
        run(monkeypatch, "--server", address(server))
        assert served(server) == ("2", None)


@pytest.mark.parametrize("gate", ["failed", "off"])
def test_what_did_not_pass_the_gate_is_not_deployed(
    registry: Registry, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add(registry, "challenger", gate=gate, bias=5.0)
    with pytest.raises(Problem, match=rf"version 3 did not pass the gate \(its tag `gate` is {gate}\)"):
        run(monkeypatch, "--server", "http://127.0.0.1:9", "--version", version)
    with pytest.raises(Problem, match="has no version 9; it has "):
        run(monkeypatch, "--server", "http://127.0.0.1:9", "--version", "9")
    assert aliases(registry) == {"production": "1"}


def test_a_server_that_is_down_or_of_another_environment_is_found_before_anything_moves(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Problem, match=r"GET http://127\.0\.0\.1:9/health: "):
        run(monkeypatch, "--server", "http://127.0.0.1:9")
    with (
        production(registry, tmp_path, alias="champion") as server,
        pytest.raises(Problem, match="serves models:/leukdetect@champion and would not follow"),
    ):
        run(monkeypatch, "--server", address(server))
    assert aliases(registry) == {"production": "1"}


def test_a_version_that_the_servers_refuse_is_taken_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add(registry, "champion", bias=5.0, change=spoil)
    with production(registry, tmp_path) as server:
        with pytest.raises(Problem, match="Version 3 was refused; version 1 goes on serving"):
            run(monkeypatch, "--server", address(server))
        assert served(server) == ("1", None)
    assert aliases(registry) == {"production": "1"}
    assert "taken back: production is version 1 again" in capfd.readouterr().err


def spoil(file: Path) -> None:
    """The golden set is of another model."""
    content = file.read_bytes()
    bad = re.sub(rb'"probabilities":\[0\.\d', rb'"probabilities":[0.0', content)
    assert bad != content
    file.write_bytes(bad)


def test_a_server_that_answers_otherwise_through_its_gateway_is_taken_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own check cannot see what stands before it: here, a gateway that changes images."""
    with production(registry, tmp_path) as server, gateway(server) as url:
        with pytest.raises(Problem, match="answers golden image 0 otherwise than where the model was built"):
            run(monkeypatch, "--server", url)
        assert served(server) == ("1", None)
    assert aliases(registry) == {"production": "1"}


def test_where_the_registry_is_lost_meanwhile_that_is_said_and_going_back_works_once_it_answers(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with production(registry, tmp_path) as server:
        with contextlib.ExitStack() as lost:

            def lose() -> None:
                lost.enter_context(registry.down())
                registry.database.mkdir()  # else SQLite would make an empty one
                lost.callback(registry.database.rmdir)

            with (
                gateway(server, at_first_prediction=lose) as url,
                pytest.raises(Problem, match=r"production still names version 2 there.*run this with --back"),
            ):
                run(monkeypatch, "--server", url)
            assert served(server)[0] == "2"
        run(monkeypatch, "--server", address(server), "--back")
        assert served(server) == ("1", None)
    assert aliases(registry) == {"production": "1", "production-previous": "1"}


@contextlib.contextmanager
def gateway(
    *servers: httpx.Client, at_first_prediction: Callable[[], None] = lambda: None, image: bytes | None = GREEN
) -> Iterator[str]:
    """Passes everything on, to one server after the other, but every image is another."""
    waiting, turns = [at_first_prediction], itertools.cycle(servers)

    async def pass_on(request: Request) -> Response:
        body = await request.body()
        if request.url.path == "/predict":
            body = image or body
            while waiting:
                waiting.pop()()
        headers = {"X-API-Key": request.headers["X-API-Key"]}
        async with httpx.AsyncClient(base_url=next(turns).base_url, headers=headers, timeout=30) as client:
            answer = await client.request(request.method, request.url.path, content=body)
        return Response(answer.content, answer.status_code, media_type=answer.headers["content-type"])

    app = Starlette(routes=[Route("/{path:path}", pass_on, methods=["GET", "POST"])])
    with serve(app) as client:
        yield str(client.base_url)


def test_a_first_deployment_that_nothing_follows_leaves_no_alias(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    registry.client.delete_registered_model_alias("leukdetect", "production")
    monkeypatch.setattr(servers, "TIMEOUT", 1.0)
    with pytest.raises(Problem, match="did not serve version 2 within 1 s"):
        run(monkeypatch, "--server", "http://127.0.0.1:9")
    assert aliases(registry) == {}
    assert "taken back: production is nothing again" in capfd.readouterr().err


def test_an_interrupted_deployment_is_taken_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(servers.Server, "answer_golden_set", interrupt)
    with production(registry, tmp_path) as server:
        with pytest.raises(KeyboardInterrupt):
            run(monkeypatch, "--server", address(server))
        assert served(server) == ("1", None)
    assert aliases(registry) == {"production": "1"}


# Going back


def test_all_servers_go_back_within_seconds_and_no_request_is_lost(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the command as it is run, imports and all; none of the servers looks by itself meanwhile."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with production(registry, tmp_path / "one") as one, production(registry, tmp_path / "two") as two:
        both = [*("--server", address(one)), *("--server", address(two))]
        run(monkeypatch, *both)
        assert served(one) == served(two) == ("2", None)
        with asking(address(one), clients=2, pause=0.02, headers={"X-API-Key": "lis"}) as tally:
            until(lambda: tally.answered > 20)
            began = time.monotonic()
            back = [sys.executable, "-m", "pipeline.deploy", "production", "--back", *both]
            done = subprocess.run(
                back, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
            )
            seconds = time.monotonic() - began
        assert served(one) == served(two) == ("1", None)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("production: back to version 1\n")
    assert done.stdout.count("serves version 1") == done.stdout.count("answers 2 golden images as expected") == 2
    assert done.stdout.endswith("production is version 1 now. It was version 2.\n")
    assert ADMIN_KEY not in done.stdout
    assert seconds < 20  # on an idle machine four, three of them imports
    assert (tally.failures, tally.lost, tally.wrong) == ({}, 0, [])
    assert {"1", "2"} == set(tally.versions)
    assert aliases(registry) == {"production": "1", "production-previous": "1"}


@contextlib.contextmanager
def replicas(
    registry: Registry, folder: Path, name: str, **options: Any
) -> Iterator[tuple[str, httpx.Client, httpx.Client]]:
    """Two servers of one port, whose addresses a name stands for, as a headless Service's does; where it leads."""
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    with production(registry, folder / "one", options=options) as one:
        port = one.base_url.port
        assert port
        with production(registry, folder / "two", at=("127.0.0.2", port), options=options) as two:
            yield f"{name}:{port}", one, two


@pytest.fixture
def a_name_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name `pods` has two addresses."""
    resolve = socket.getaddrinfo

    def both(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "pods":
            return resolve(host, port, *args, **kwargs)
        return [found for each in ("127.0.0.1", "127.0.0.2") for found in resolve(each, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", both)


def test_servers_that_a_load_balancer_asks_by_turns_all_follow(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replicas(registry, tmp_path, "http://pods") as (_, one, two), gateway(one, two, image=None) as url:
        run(monkeypatch, "--server", url)
        assert served(one) == served(two) == ("2", None)
        run(monkeypatch, "--server", url, "--back")
        assert served(one) == served(two) == ("1", None)


@pytest.mark.usefixtures("a_name_of_two")
def test_every_server_behind_one_name_is_deployed_to_and_goes_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """None of them looks by itself: whoever was not asked would stay behind."""
    with replicas(registry, tmp_path, "http://pods") as (url, one, two):
        run(monkeypatch, "--server", url)
        assert served(one) == served(two) == ("2", None)
        run(monkeypatch, "--server", url, "--back")
        assert served(one) == served(two) == ("1", None)
        told = capfd.readouterr().out
        for ip in ("127.0.0.1", "127.0.0.2"):
            assert f"{url} ({ip}) serves version 2" in told
            assert f"{url} ({ip}) serves version 1" in told
        lines = promotions.read(registry.client, "leukdetect")
        moves = [(line["alias"], line["from_version"], line["version"]) for line in lines]
        assert moves == [("production", "1", "2"), ("production", "2", "1")]
    with production(registry, tmp_path / "one", at=("127.0.0.1", int(url.rpartition(":")[2]))) as one:
        with pytest.raises(Problem, match=r"not everywhere:\nGET http://pods:\d+/health \(127\.0\.0\.2\): "):
            run(monkeypatch, "--server", url, "--back")
        assert served(one) == ("1", None)


@pytest.mark.usefixtures("a_name_of_two")
def test_over_tls_each_server_behind_a_name_has_to_show_the_names_certificate(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("openssl"), "there is no openssl to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=pods"
    files = ["-addext", "subjectAltName=DNS:pods", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    options = {"ssl_certfile": certificate, "ssl_keyfile": key}
    with replicas(registry, tmp_path, "https://pods", **options) as (url, _, _):
        run(monkeypatch, "--server", url)
        with pytest.raises(Problem, match="CERTIFICATE_VERIFY_FAILED"):  # of the name alone
            run(monkeypatch, "--server", url.replace("pods", "127.0.0.1"), "--back")


def test_a_server_that_is_down_keeps_no_other_from_going_back(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with production(registry, tmp_path) as server:
        run(monkeypatch, "--server", address(server))
        with pytest.raises(Problem, match=r"version 1 again, but not everywhere:\nGET http://127\.0\.0\.1:9/health"):
            run(monkeypatch, "--server", "http://127.0.0.1:9", address(server), "--back")
        assert served(server) == ("1", None)
        run(monkeypatch, "--server", address(server), "--back")  # again: tries it, and moves nothing
    assert aliases(registry)["production"] == "1"


def test_without_a_key_the_servers_go_back_at_their_next_turn(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKDETECT_ADMIN_KEY", "")
    with production(registry, tmp_path, keys_file=None, watch_seconds=0.2) as server:
        run(monkeypatch, "--server", address(server))
        run(monkeypatch, "--server", address(server), "--back")
        assert served(server) == ("1", None)


def test_where_nothing_was_deployed_before_that_is_said(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="has no alias production-previous, so none was deployed before"):
        run(monkeypatch, "--server", "http://127.0.0.1:9", "--back")
    assert aliases(registry) == {"production": "1"}
