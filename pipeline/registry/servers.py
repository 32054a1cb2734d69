"""An environment: an alias and the servers that watch it. Whether each serves a version, and answers as it should."""

import base64
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from mlflow import MlflowClient
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from leukdetect.contract import FILES
from pipeline.registry import promotions, versions
from pipeline.registry.versions import ModelFile
from pipeline.stage import Problem

TIMEOUT = 180.0  # seconds until a server serves the version: its next turn, a download, a warm-up
IN_A_ROW = 20  # answers of one version, each over a connection of its own: an address may stand for several servers
REQUEST_TIMEOUT = 30.0  # seconds; a reload is answered within ten
BUSY = (429, 503, 504)  # tried again: a deployment comes while clients ask
# Neither a refused connection nor a wrong certificate: only an answer that says so.
RETRY = Retry(
    connect=0, read=0, other=0, status=6, backoff_factor=0.5, status_forcelist=BUSY, allowed_methods=None,
    raise_on_status=False,
)  # fmt: skip


class UnreachableError(Problem):
    """The server could not be asked."""


@dataclass(frozen=True)
class Server:
    """A server of the environment, or several behind one address. `ip`: which of those that its name stands for."""

    url: str
    name: str
    alias: str
    ip: str | None = None

    def __str__(self) -> str:
        return f"{self.url} ({self.ip})" if self.ip else self.url

    def check(self) -> None:
        """Raises Problem where it does not answer, or does not watch this alias."""
        model = self._ask("GET", "/health")["model"]
        if (model["name"], model["alias"]) != (self.name, self.alias):
            watched = f"models:/{model['name']}@{model['alias']}"
            raise Problem(
                f"{self} serves {watched} and would not follow. Give it LEUKDETECT_MODEL="
                f"models:/{self.name}@{self.alias}, or name the environment that it belongs to."
            )

    def follow(self, version: str) -> None:
        """Waits until it serves the version; with an admin's key it is told to look at once.

        Raises Problem: it refuses the version, or has not followed in time.
        """
        deadline, in_a_row, reloads = time.monotonic() + TIMEOUT, 0, 0
        while in_a_row < IN_A_ROW:
            try:
                if in_a_row == 0 and _key():
                    # One more after each miss: a balancer may ask by turns, and then the same one would hear each.
                    reloads = min(reloads + 1, IN_A_ROW)
                    for _ in range(reloads):
                        answer = self._ask("POST", "/admin/reload")
                        if answer["result"] in ("refused", "failed"):
                            raise Problem(f"{self}: {answer['note'] or 'the registry could not be asked'}")
                        if answer["result"] == "under-way":
                            break
                health = self._ask("GET", "/health")
                served, state = health["model"]["version"], health["note"] or "it looks seldom, or has not looked yet"
            except UnreachableError as error:  # a first deployment is what its servers wait for
                served, state = None, str(error)
            in_a_row = in_a_row + 1 if served == version else 0
            if in_a_row == 0:
                if time.monotonic() > deadline:
                    raise Problem(f"{self} did not serve version {version} within {TIMEOUT:.0f} s: {state}")
                time.sleep(0.2)
        self._ask("GET", "/readyz")
        print(f"{self} serves version {version}", flush=True)

    def answer_golden_set(self, files: dict[str, ModelFile]) -> None:
        """Asks it, as any client would, about the images whose answers ride in the model file.

        Args:
            files: the version's model files by precision, as the registry has them.

        Raises:
            Problem: it serves another file, or answers otherwise than where the model was built.
        """
        served = self._ask("GET", "/health")["model"]
        file = files[served["precision"]]
        if served["file_sha256"] != file.sha256:
            raise Problem(f"{self} serves another {FILES[served['precision']]} than the registry has")
        worst = 0.0
        for number, golden in enumerate(file.contract.golden):
            answer = self._ask("POST", "/predict", base64.b64decode(golden.image))["probabilities"]
            expected = zip(file.contract.classes, golden.probabilities, strict=True)
            difference = max(abs(answer[each.key] - probability) for each, probability in expected)
            worst = max(worst, difference)
            if difference > file.contract.golden_tolerance:
                raise Problem(
                    f"{self} answers golden image {number} otherwise than where the model was built: a probability "
                    f"is off by {difference:.4f}, tolerated are {file.contract.golden_tolerance}"
                )
        print(f"{self} answers {len(file.contract.golden)} golden images as expected, within {worst:.4f}")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """One request over a connection of its own.

        Raises:
            UnreachableError: it does not answer.
            Problem: it answers with an error.
        """
        parts = urlsplit(self.url.rstrip("/") + path)
        asked = f"{method} {parts.geturl()}" + (f" ({self.ip})" if self.ip else "")
        headers = {"X-API-Key": key} if (key := _key()) else {}
        if self.ip:
            user, at, headers["Host"] = parts.netloc.rpartition("@")
            host = f"[{self.ip}]" if ":" in self.ip else self.ip
            parts = parts._replace(netloc=f"{user}{at}{host}" + (f":{parts.port}" if parts.port else ""))
        url = parts.geturl()
        try:
            with requests.Session() as session:
                session.mount(url, _Adapter(urlsplit(self.url).hostname if self.ip else None))
                # A redirect would take the key to whoever it names.
                answer = session.request(
                    method, url, data=body, headers=headers, timeout=REQUEST_TIMEOUT, allow_redirects=False
                )
            if answer.is_redirect:
                to = answer.headers["Location"]
                raise Problem(f"{asked} redirects to {to}, where keys are not taken. Give the server's address.")
            if not answer.ok:
                absent = answer.status_code >= 500  # a load balancer says so of servers that are still starting
                kind = UnreachableError if absent else Problem
                raise kind(f"{asked} answered {answer.status_code}: {answer.text[:300]}")
            result: dict[str, Any] = answer.json()
        except requests.RequestException as error:
            raise UnreachableError(f"{asked}: {error}") from error
        return result


class _Adapter(HTTPAdapter):
    """Holds the certificate to a name where the address has an IP in its place."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        super().__init__(max_retries=RETRY)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, server_hostname=self._name, **kwargs)


def servers(url: str, name: str, alias: str) -> list[Server]:
    """Whom an address stands for: each of its host's IP addresses, as a headless Service of Kubernetes has them.

    A name with one address of a kind (IPv4, IPv6), such as localhost or a load balancer's, is left to the system.
    """
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # said by whoever asks it
        found = []
    for kind in (socket.AF_INET, socket.AF_INET6):
        ips = sorted({str(address[0]) for family, _, _, _, address in found if family == kind})
        if len(ips) > 1:
            return [Server(url, name, alias, ip) for ip in ips]
    return [Server(url, name, alias)]


@dataclass(frozen=True)
class Environment:
    """An alias of the registered model, and the servers that watch it."""

    client: MlflowClient
    model: str
    alias: str
    servers: list[Server]
    before: dict[str, str]  # the version of each alias when the command began

    @property
    def previous(self) -> str:
        """The alias of the version before."""
        return f"{self.alias}-previous"

    def move(self, alias: str, version: str | None) -> None:
        """Moves an alias; None removes it. Moves of the environment's own are in the promotions log."""
        former = versions.aliases(self.client, self.model).get(alias)
        versions.move(self.client, self.model, alias, version)
        if alias == self.alias and version and version != former:
            promotions.append(self.client, self.model, alias, version, former)

    def at_once(self, act: Callable[[Server], None]) -> list[str]:
        """Acts on all servers side by side, so that one that is down keeps no other waiting; says what went wrong."""

        def tried(server: Server) -> str | None:
            try:
                act(server)
            except Problem as problem:
                return str(problem)
            return None

        with ThreadPoolExecutor(len(self.servers)) as pool:
            return [problem for problem in pool.map(tried, self.servers) if problem]


def _key() -> str | None:
    if file := os.environ.get("LEUKDETECT_ADMIN_KEY_FILE"):
        return Path(file).read_text().strip()
    return os.environ.get("LEUKDETECT_ADMIN_KEY") or None  # a workflow without that secret passes an empty one
