"""Methods and paths: HEAD, what is not there, a slash too many, a prefix behind a proxy. And a batch has one model."""

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from fastapi.routing import APIRoute

from leukdetect.model_file import load
from leukdetect.registry import Located
from serving.api import predict
from serving.app import ROUTERS, create_app
from serving.models.served import Models
from serving.settings import Settings
from tests import tiny_model
from tests.server import serve

BLUE = tiny_model.jpeg((60, 60, 200))
PREFIX = "/lab-2/leukdetect"
PAGES = ["/", "/docs", "/status", "/openapi.json", "/static/app.js", "/static/swagger-ui/swagger-ui.css"]


@contextmanager
def serving(folder: Path, settings: Settings | None = None) -> Iterator[tuple[httpx.Client, Models]]:
    tiny_model.write(folder / "m.onnx")
    models = Models(load(Located(folder / "m.onnx", "7", "champion"), "fp32", 2))
    own = (settings or Settings()).model_copy(update={"feedback_db": folder / "feedback.db"})
    with serve(create_app(own, models)) as client:
        yield client, models


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(tmp_path_factory.mktemp("server")) as (client, _):
        yield client


def routes(method: str) -> list[str]:
    named = {"name": "leukdetect", "version": "7"}
    every = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    return [route.path.format(**named) for route in every if method in (route.methods or ())]


@pytest.mark.parametrize("path", [*routes("GET"), *PAGES])
def test_head_is_answered_as_get_without_the_body(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert head.content == b""
    if path not in ("/health", "/metrics", "/status.json"):  # which change
        assert head.headers["content-length"] == str(len(get.content))
    refused = client.put(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_head_of_what_takes_a_body_is_no_method(client: httpx.Client) -> None:
    answer = client.head("/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", [path for path in routes("POST") if not path.startswith("/admin")])
@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, gzip"])
def test_a_compressed_body_is_refused_with_words(client: httpx.Client, path: str, coding: str) -> None:
    answer = client.post(path, content=BLUE, headers={"Content-Encoding": coding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    told = answer.json()["error" if path.startswith("/v2") else "detail"]
    assert told.startswith("Send the body as it is, without Content-Encoding")


def test_identity_is_no_compression(client: httpx.Client) -> None:
    assert client.post("/predict", content=BLUE, headers={"Content-Encoding": "Identity"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/leukdetect/versions/7/nothing", 404),
        ("POST", "/v2/repository/index", 404),
        ("PUT", "/v2", 405),
        ("GET", "/v2/models/leukdetect/infer", 405),
    ],
)
def test_errors_under_v2_have_that_protocols_form(client: httpx.Client, method: str, path: str, code: int) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/json")
    assert list(answer.json()) == ["error"]


def test_errors_beside_it_do_not(client: httpx.Client) -> None:
    assert client.get("/v2x").json()["title"] == "Not Found"


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/health/", "/health"),
        ("/predict/?class=a%20b&x=/", "/predict?class=a%20b&x=/"),
        ("/v2/models/leukdetect/", "/v2/models/leukdetect"),
        ("/v2/models/b%3Ac/", "/v2/models/b%3Ac"),
    ],
)
def test_a_redirect_for_a_slash_names_no_host_and_keeps_any_prefix(client: httpx.Client, path: str, right: str) -> None:
    answer = client.get(path, headers={"Host": "evil.example", "X-Forwarded-Proto": "ftp"})
    location = answer.headers["location"]
    assert answer.status_code == 307
    assert urlsplit(location)[:2] == ("", "")
    assert not location.startswith("/")
    assert urljoin(f"https://hospital.example/a/b{path}", location) == f"https://hospital.example/a/b{right}"
    assert "evil" not in str(answer.headers)


def test_each_slash_too_many_is_one_step_up(client: httpx.Client) -> None:
    # RFC 3986, 5.2.4, and browsers; Python's urljoin drops empty segments.
    assert client.get("/predict///").headers["location"] == "../../../predict"


def test_no_path_redirects_to_another_host(client: httpx.Client) -> None:
    for path in ("//evil.example/", "//evil.example/%2e%2e/", "/\\evil.example/", "//", "/%00/", "/static/%00"):
        answer = client.get(str(client.base_url) + path)
        assert answer.status_code in (307, 404), path
        found = urlsplit(urljoin(f"https://hospital.example{path}", answer.headers.get("location", ".")))
        assert found.netloc in ("hospital.example", "evil.example" if path.startswith("//e") else "hospital.example")


class Proxy(http.server.ThreadingHTTPServer):
    """Takes the prefix off."""

    upstream: str


class Stripping(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        assert self.path.startswith(PREFIX + "/")
        url = self.server.upstream + self.path.removeprefix(PREFIX)
        answer = httpx.request(self.command, url, content=self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Location"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module", params=["the proxy takes the prefix off", "the proxy passes it on"])
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server behind a proxy, as its clients know it."""
    with serving(tmp_path_factory.mktemp("server"), Settings(path_prefix=PREFIX)) as (client, _):
        if request.param == "the proxy passes it on":
            yield str(client.base_url).rstrip("/") + PREFIX
            return
        with Proxy(("127.0.0.1", 0), Stripping) as proxy:
            proxy.upstream = str(client.base_url).rstrip("/")
            threading.Thread(target=proxy.serve_forever).start()
            yield f"http://127.0.0.1:{proxy.server_address[1]}{PREFIX}"
            proxy.shutdown()


@pytest.mark.parametrize("page", ["/", "/docs", "/status"])
def test_all_that_a_page_names_is_there_behind_a_prefix(behind: str, page: str) -> None:
    waiting, seen = [behind + page], set[str]()
    while waiting:
        url = waiting.pop()
        seen.add(url)
        assert url.startswith(behind + "/")
        answer = httpx.get(url)
        assert answer.status_code == 200, url
        if url.endswith(".js") and "swagger" not in url:
            found = re.findall(r'(?:from|url:) "([^"]+)"', answer.text)
            found = [urljoin(url, each) if each.startswith(".") else urljoin(behind + page, each) for each in found]
            asked = re.findall(r'(?:ask|fetch)\("(\w[\w.]*)"', answer.text)
            found += [urljoin(behind + page, each) for each in asked if each not in ("predict", "feedback")]
        elif "text/html" in answer.headers["content-type"]:
            found = [urljoin(url, each) for each in re.findall(r'(?:href|src)="([^"#]+)"', answer.text)]
        else:
            found = []
        waiting += [each for each in found if each not in seen]
    assert len(seen) > 4


def test_the_api_and_its_description_work_behind_a_prefix(behind: str) -> None:
    described = httpx.get(f"{behind}/openapi.json").json()
    [server] = described["servers"]
    predict = urljoin(f"{behind}/openapi.json", server["url"]) + "/predict"
    assert predict == f"{behind}/predict"
    assert "/predict" in described["paths"]
    assert httpx.post(predict, content=BLUE).json()["class"] == "pre"
    assert httpx.post(f"{predict}/", content=BLUE, follow_redirects=True).json()["class"] == "pre"
    assert list(httpx.get(f"{behind}/v2/nothing").json()) == ["error"]


@pytest.mark.parametrize("prefix", ["leukdetect", "/leukdetect/", "/", "//x", "/a b", "https://x/leukdetect"])
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="path_prefix"):
        Settings(path_prefix=prefix)


def test_a_batch_is_answered_by_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as (client, models):
        other = load(Located(tmp_path / "m.onnx", "8", "champion"), "fp32", 2)
        answer = predict.answer

        async def switching(*args: Any) -> Any:
            answered = await answer(*args)
            models.switch(other)
            return answered

        monkeypatch.setattr(predict, "answer", switching)
        answers = client.post("/predict/batch", files=[("file", BLUE)] * 12).json()["results"]
        after = client.post("/predict", content=BLUE).json()
    assert {each["prediction"]["model"]["version"] for each in answers} == {"7"}
    assert after["model"]["version"] == "8"
