"""Puts a version that passed the gate in service: an environment's alias moves, its servers follow and are tried.

An environment is a registry alias (`staging`, `production`), which its servers watch: LEUKDETECT_MODEL is
models:/leukdetect@production there. The gate moves `champion`; only a deployment moves these.

Reads:  params.register, the registry, the servers; LEUKDETECT_ADMIN_KEY (an admin's key) where they use keys
Writes: the alias; whatever fails before the end, a Ctrl-C too, moves it back
Run:    python -m pipeline.deploy production --server https://leukdetect.example [--version 7]   (exit 1: taken back)
"""

import argparse
import base64
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow import MlflowClient
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from leukdetect.contract import FILES, Contract
from pipeline import params, stage
from pipeline.model_file import onnx_model
from pipeline.registry import tracking
from pipeline.stage import Problem

TIMEOUT = 180.0  # seconds until every server serves the version: its next turn, a download, a warm-up
IN_A_ROW = 20  # answers of one version, each over a connection of its own: an address may stand for several servers
REQUEST_TIMEOUT = 30.0  # seconds; a reload is answered within ten
BUSY = (429, 503, 504)  # tried again: a deployment comes while clients ask


class UnreachableError(Problem):
    """The server could not be asked."""


def main() -> None:
    options = _options()
    name = params.load().register_.name
    servers = [Server(url, name, options.environment) for url in options.server]
    tracking.check()
    with tracking.reachable(), tempfile.TemporaryDirectory() as folder:
        client = tracking.client()
        aliases = client.get_registered_model(name).aliases
        version = options.version or str(aliases.get("champion", ""))
        before = str(aliases[options.environment]) if options.environment in aliases else None
        _refuse_unless_passed(client, name, version)
        files = _download(name, version, Path(folder))
        if before:  # else this is the first deployment, and a server that has no model has not started
            for server in servers:
                server.check()

        print(f"{options.environment}: {before or 'nothing'} → version {version}", flush=True)
        try:
            client.set_registered_model_alias(name, options.environment, version)
            for server in servers:
                server.follow(version)
                server.answer_golden_set(files)
        except BaseException:
            if before != version:
                _take_back(client, name, options.environment, version, before, servers)
            raise
    print(f"{options.environment} is version {version} now." + (f" It was version {before}." if before else ""))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", help="the alias that its servers watch")
    parser.add_argument("--server", required=True, nargs="+", help="their addresses")
    parser.add_argument("--version", help="the champion, unless given; an earlier one is how to go back")
    return parser.parse_args()


@dataclass(frozen=True)
class ModelFile:
    """A model file of the version, as the registry has it."""

    sha256: str
    contract: Contract


@dataclass(frozen=True)
class Server:
    """A server of the environment, or several behind one address."""

    url: str
    name: str
    alias: str

    def check(self) -> None:
        """Raises:
        Problem: it does not answer, or does not watch this alias.
        """
        model = self._ask("GET", "/health")["model"]
        if (model["name"], model["alias"]) != (self.name, self.alias):
            watched = f"models:/{model['name']}@{model['alias']}"
            raise Problem(
                f"{self.url} serves {watched} and would not follow. Give it LEUKDETECT_MODEL="
                f"models:/{self.name}@{self.alias}, or name the environment that it belongs to."
            )

    def follow(self, version: str) -> None:
        """Waits until it serves the version; with an admin's key it is told to look at once.

        Raises:
            Problem: it refuses the version, or has not followed in time.
        """
        deadline = time.monotonic() + TIMEOUT
        told, in_a_row = _key() is None, 0
        while in_a_row < IN_A_ROW:
            try:
                if not told:
                    answer = self._ask("POST", "/admin/reload")
                    if answer["result"] in ("refused", "failed"):
                        raise Problem(f"{self.url}: {answer['note'] or 'the registry could not be asked'}")
                    told = True
                health = self._ask("GET", "/health")
                served, state = health["model"]["version"], health["note"] or "it looks seldom, or has not looked yet"
            except UnreachableError as error:  # a first deployment is what its servers wait for to start
                served, state = None, str(error)
            in_a_row = in_a_row + 1 if served == version else 0
            if in_a_row == 0 and time.monotonic() > deadline:
                raise Problem(f"{self.url} did not serve version {version} within {TIMEOUT:.0f} s: {state}")
            if in_a_row == 0:
                time.sleep(0.2)
        self._ask("GET", "/readyz")
        print(f"{self.url} serves version {version}", flush=True)

    def answer_golden_set(self, files: dict[str, ModelFile]) -> None:
        """Asks it, as any client would, about the images whose answers ride in the model file.

        Raises:
            Problem: it serves another file, or answers otherwise than where the model was built.
        """
        served = self._ask("GET", "/health")["model"]
        file = files[served["precision"]]
        if served["file_sha256"] != file.sha256:
            raise Problem(f"{self.url} serves another {FILES[served['precision']]} than the registry has")
        worst = 0.0
        for number, golden in enumerate(file.contract.golden):
            answer = self._ask("POST", "/predict", base64.b64decode(golden.image))["probabilities"]
            expected = zip(file.contract.classes, golden.probabilities, strict=True)
            difference = max(abs(answer[each.key] - probability) for each, probability in expected)
            worst = max(worst, difference)
            if difference > file.contract.golden_tolerance:
                raise Problem(
                    f"{self.url} answers golden image {number} otherwise than where the model was built: a probability "
                    f"is off by {difference:.4f}, tolerated are {file.contract.golden_tolerance}"
                )
        print(f"{self.url} answers {len(file.contract.golden)} golden images as expected, within {worst:.4f}")

    def roll_back(self, version: str) -> None:
        """Leaves the version at once, without the registry, if it is in service and there is a key to say so with."""
        if _key() and self._ask("GET", "/health")["model"]["version"] == version:
            self._ask("POST", "/admin/rollback")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """One request over a connection of its own.

        Raises:
            UnreachableError: it does not answer.
            Problem: it answers with an error.
        """
        url = self.url.rstrip("/") + path
        headers = {"X-API-Key": key} if (key := _key()) else {}
        retry = Retry(
            connect=0,
            read=0,
            status=6,
            backoff_factor=0.5,
            status_forcelist=BUSY,
            allowed_methods=None,
            raise_on_status=False,
        )
        try:
            with requests.Session() as session:
                session.mount(url, HTTPAdapter(max_retries=retry))
                answer = session.request(method, url, data=body, headers=headers, timeout=REQUEST_TIMEOUT)
            if not answer.ok:
                absent = answer.status_code >= 500  # a load balancer says so of servers that are still starting
                kind = UnreachableError if absent else Problem
                raise kind(f"{method} {url} answered {answer.status_code}: {answer.text[:300]}")
            result: dict[str, Any] = answer.json()
        except requests.RequestException as error:
            raise UnreachableError(f"{method} {url}: {error}") from error
        return result


def _key() -> str | None:
    return os.environ.get("LEUKDETECT_ADMIN_KEY") or None  # a workflow without that secret passes an empty one


def _refuse_unless_passed(client: MlflowClient, name: str, version: str) -> None:
    gates = {str(each.version): each.tags.get("gate") for each in client.search_model_versions(f"name = '{name}'")}
    if version not in gates:
        raise Problem(f"{name} has no version {version or 'with the alias champion'}; it has {', '.join(gates) or '–'}")
    if gates[version] != "passed":
        raise Problem(
            f"{name} version {version} did not pass the gate (its tag `gate` is {gates[version]}), so it is not "
            "deployed. `python -m pipeline.register` says what falls short."
        )


def _download(name: str, version: str, folder: Path) -> dict[str, ModelFile]:
    """The version's model files by precision, before anything moves: their golden sets are what servers are held to."""
    uri = f"models:/{name}/{version}/artifacts"
    try:
        got = Path(
            mlflow.artifacts.download_artifacts(
                uri, dst_path=str(folder), tracking_uri=tracking.uri(), registry_uri=tracking.uri()
            )
        )
    except OSError as error:
        raise Problem(f"the files of {name} version {version} could not be fetched: {error}") from error
    files = {precision: got / file for precision, file in FILES.items()}
    return {
        precision: ModelFile(stage.sha256(path), onnx_model.load(path).contract) for precision, path in files.items()
    }


def _take_back(
    client: MlflowClient, name: str, environment: str, version: str, before: str | None, servers: list[Server]
) -> None:
    """The servers go back first, since that needs no registry. The alias then moves those that were not reached."""
    for server in servers:
        with _going_on():
            server.roll_back(version)
    try:
        if before is None:
            client.delete_registered_model_alias(name, environment)
        else:
            client.set_registered_model_alias(name, environment, before)
    except tracking.FAILURES as error:
        raise Problem(
            f"the deployment failed, and the registry could not be told: {environment} still names version {version} "
            f"there. Move it to {before or 'nothing'} before a server starts anew. The servers were told to go back."
        ) from error
    print(f"taken back: {environment} is {f'version {before}' if before else 'nothing'} again", file=sys.stderr)
    for server in servers if before else []:
        with _going_on():
            server.follow(str(before))


@contextmanager
def _going_on() -> Iterator[None]:
    """One server that cannot go back must not keep the others from it."""
    try:
        yield
    except Problem as problem:
        print(f"warning: {problem}", file=sys.stderr)


if __name__ == "__main__":
    stage.guard(main)
