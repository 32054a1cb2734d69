"""A real Prometheus that has scraped a real server, which has seen every kind of request."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serving.metrics import Metrics
from tests import tiny_model
from tests.bombs import saved
from tests.conftest import require
from tests.registry import Registry
from tests.server import Server, running

MONITORING = Path("monitoring")


def _rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "prometheus" / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RULES, ALERTS = _rules("rules.yml"), _rules("alerts.yml")


def exported() -> set[str]:
    """The names under which Prometheus knows the server's metrics."""
    names = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def selectors(query: str) -> set[str]:
    """The series that a PromQL query asks for, as it writes them: names, with their matchers."""
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        strings.append(found[0])
        return f"'{len(strings) - 1}'"

    bare = re.sub(r'"[^"]*"', keep, query)  # a matcher's text may hold anything
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*(\([^)]*\))?", " ", bare)
    bare = re.sub(r"\boffset\s+\w+|\b(and|or|unless|bool)\b", " ", bare)
    found = re.findall(r"(?<![\w:'.])[a-zA-Z_:][\w:]*(?:\{[^}]*\})?(?![\w:]*\s*\()", bare)
    return {re.sub(r"'(\d+)'", lambda each: strings[int(each[1])], selector) for selector in found}


def names(query: str) -> set[str]:
    """The metrics that a PromQL query names."""
    return {selector.split("{")[0] for selector in selectors(query)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def process(*command: str | Path, ready: str, log: Path) -> Iterator[None]:
    """Runs a program until the block ends; `ready` is a URL that answers 200 when it is."""
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(ready).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        running.terminate()
        running.wait(timeout=30)


@dataclass(frozen=True)
class Prometheus:
    """A running one, through its HTTP API."""

    url: str
    since: float

    def get(self, path: str, **params: Any) -> Any:
        """The `data` of an answer; an error of Prometheus is the test's."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30).json()
        assert answer["status"] == "success", f"{params}: {answer.get('error')}"
        return answer["data"]

    def series(self, selector: str) -> list[dict[str, str]]:
        """The labels of whatever matched since it runs."""
        found: list[dict[str, str]] = self.get("series", **{"match[]": selector, "start": self.since})
        return found

    def numbers(self, query: str) -> list[dict[str, str]]:
        """The labels of each series of a query's result that was ever a number."""
        result = self.get("query_range", query=query, start=self.since, end=time.time(), step=1)["result"]
        return [each["metric"] for each in result if any(value != "NaN" for _, value in each["values"])]


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Prometheus]:
    """It scrapes a server of a real registry every second, and evaluates the shipped rules."""
    require(shutil.which("prometheus"), "there is no prometheus; apt-get install prometheus")
    folder = tmp_path_factory.mktemp("monitoring")
    registry = Registry(tmp_path_factory.mktemp("registry"), empty_database)
    registry.add()
    registry.add("challenger", bias=40.0)  # calls a dim image pro, where the champion says benign
    flags = (
        "--mlflow-tracking-uri",
        registry.uri,
        "--shadow-share",
        "1",
        "--watch-seconds",
        "0.5",
        "--queue-size",
        "1",
    )
    with running(folder, "--mlflow-tracking-uri", registry.uri, *flags) as server, scraping(folder, server) as found:
        eventually(found, 'up{job="leukdetect"} == 1')  # it takes Prometheus 5 s to find its targets
        for _ in range(4):  # a rate needs several scrapes
            everything(server)
            time.sleep(1)
        eventually(found, "leukdetect_drift_statistic > 0", meanwhile=lambda: everything(server))  # a full window
        registry.add(change=lambda file: file.write_bytes(b"no model"))
        eventually(found, 'leukdetect_reloads_total{result="refused"} > 0')
        with registry.down():
            eventually(found, 'leukdetect_reloads_total{result="failed"} > 0')
        time.sleep(2)  # until the rules have seen it all
        yield found


@contextmanager
def scraping(folder: Path, server: Server) -> Iterator[Prometheus]:
    """Prometheus with the shipped configuration, but for targets, ports and intervals."""
    port = free_port()
    config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str((MONITORING / "prometheus" / name).resolve()) for name in config["rule_files"]]
    del config["alerting"]
    targets = {"leukdetect": httpx.URL(server.url).netloc.decode(), "prometheus": f"127.0.0.1:{port}"}
    for scrape in config["scrape_configs"]:
        scrape.pop("dns_sd_configs", None)
        scrape["static_configs"] = [{"targets": [targets[scrape["job_name"]]]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    command = (
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    since = time.time()
    with process(*command, ready=f"{url}/-/ready", log=folder / "prometheus.log"):
        yield Prometheus(url, since)


def everything(server: Server) -> None:
    """Each kind of request, and each kind of answer that can be had at will."""
    good, dim, dark = (tiny_model.jpeg(colour) for colour in ((200, 60, 60), (100, 90, 90), (0, 0, 0)))
    with httpx.Client(base_url=server.url) as client:
        for picture in (good, dim, dark):
            answer = client.post("/predict", content=picture).json()
            time.sleep(0.05)  # the shadow has its turn only when nobody waits
            client.post("/feedback", json={"request_id": answer["request_id"], "class": "benign"})
        client.post("/predict", content=b"no image")
        client.post("/predict", content=saved("TIFF", (100, 80), compression="lzma"))  # not known to be cheap
        client.get("/nowhere")
        client.post("/explain", content=good)
        client.post("/predict/batch", files=[("file", good), ("file", dark)])
        tensor = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [100] * 32 * 32 * 3}
        client.post("/v2/models/leukdetect/infer", json={"inputs": [tensor]})

        def crowd(_: int) -> int:
            return client.post("/predict", content=good).status_code

        deadline = time.monotonic() + 30
        with ThreadPoolExecutor(8) as threads:  # its queue holds one
            while 503 not in threads.map(crowd, range(32)):
                assert time.monotonic() < deadline, "it was to be too busy"


def eventually(prometheus: Prometheus, query: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Waits until the query has a result."""
    deadline = time.monotonic() + 60
    while not prometheus.numbers(query):
        assert time.monotonic() < deadline, f"never: {query}"
        meanwhile()
        time.sleep(0.2)
