"""The API, over real HTTP, with the server in a thread of the test's own process."""

import asyncio
import hashlib
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from PIL import Image

from leukdetect import contract
from leukdetect.model_file import load
from leukdetect.registry import Located
from leukdetect.runtime import run as session_run
from serving.app import ROUTERS, create_app
from serving.models.served import Models
from serving.periodic import Periodic
from serving.request import upload
from serving.settings import Settings
from tests import tiny_model
from tests.leukdetect.formats.pictures import encoded, photograph, with_exif_beyond_pillow
from tests.server import serve, write_keys

BLUE = tiny_model.jpeg((60, 60, 200))
RED = tiny_model.jpeg((200, 60, 60))
PROBLEM = "application/problem+json"


def app_of(path: Path, **settings: Any) -> FastAPI:
    """The application around a model file that the registry would call version 7."""
    own = Settings(feedback_db=path.parent / "feedback.db", **settings)
    return create_app(own, Models(load(Located(path, "7", "champion"), "fp32", 2)))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    return path


@pytest.fixture(scope="module")
def client(model_file: Path) -> Iterator[httpx.Client]:
    limits = {"max_body_bytes": 100_000, "max_pixels": 10_000, "max_batch_files": 3, "max_batch_bytes": 150_000}
    app = app_of(model_file, **limits)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret-file-name.jpg")

    with serve(app) as client:
        yield client


def test_a_form_and_a_raw_body_get_the_same_answer(client: httpx.Client) -> None:
    form = client.post("/predict", files={"file": ("patient-17.jpg", BLUE, "image/jpeg")})
    raw = client.post("/predict", content=BLUE, headers={"Content-Type": "image/jpeg"})
    assert form.status_code == raw.status_code == 200
    for key in form.json().keys() - {"request_id", "timings_ms"}:
        assert form.json()[key] == raw.json()[key], key


def test_the_type_is_known_by_content_whatever_it_is_called(client: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(BLUE)).save(buffer, "PNG")
    form = client.post("/predict", files={"file": ("smear.jpg", buffer.getvalue(), "image/jpeg")})
    raw = client.post("/predict", content=buffer.getvalue(), headers={"Content-Type": "image/tiff"})
    assert form.json()["image"]["format"] == raw.json()["image"]["format"] == "PNG"


def test_the_answer_says_everything_that_it_promises(client: httpx.Client, model_file: Path) -> None:
    response = client.post("/predict", content=BLUE)
    answer = response.json()
    assert answer["request_id"] == response.headers["x-request-id"]
    assert (answer["class"], answer["label"], answer["decision"]) == ("pre", "Pre-B ALL", "report")
    assert list(answer["probabilities"]) == ["benign", "early", "pre", "pro"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["p_malignant"] == pytest.approx(1 - answer["probabilities"]["benign"], abs=1e-5)
    assert answer["malignant"] is True
    assert answer["reasons"] == []
    assert answer["wording"] == "Resembles Pre-B ALL; confirm by flow cytometry."
    expected = {"sha256": hashlib.sha256(BLUE).hexdigest(), "format": "JPEG", "width": 48, "height": 40}
    assert answer["image"] == expected
    assert answer["model"] == {
        "name": "leukdetect",
        "version": "7",
        "alias": "champion",
        "file_sha256": hashlib.sha256(model_file.read_bytes()).hexdigest(),
        "precision": "fp32",
        "synthetic": True,
    }
    assert answer["timings_ms"].keys() == {"read", "decode", "queue", "infer"}
    assert all(milliseconds >= 0 for milliseconds in answer["timings_ms"].values())


def test_a_model_of_rendered_images_says_so_first(client: httpx.Client) -> None:
    answer = client.post("/predict", content=BLUE).json()
    assert answer["model"]["synthetic"] is True
    assert answer["disclaimer"].startswith("Trained on rendered images: no clinical meaning.")
    assert answer["disclaimer"].endswith(contract.DISCLAIMER)


def test_a_black_image_is_referred(client: httpx.Client) -> None:
    answer = client.post("/predict", content=tiny_model.jpeg((0, 0, 0))).json()
    assert answer["decision"] == "refer"
    assert [reason["code"] for reason in answer["reasons"]] == ["too_dark", "unlike_training_images"]
    assert "too dark" in answer["wording"]


def test_a_batch_answers_every_image_in_order_or_says_why_not(client: httpx.Client) -> None:
    files = [("file", BLUE), ("file", b"no image"), ("file", RED)]
    results = client.post("/predict/batch", files=files).json()["results"]
    assert [each["index"] for each in results] == [0, 1, 2]
    assert [each["prediction"] and each["prediction"]["class"] for each in results] == ["pre", None, "benign"]
    assert [each["problem"] and each["problem"]["status"] for each in results] == [None, 415, None]
    alone = client.post("/predict", content=BLUE).json()
    for key in alone.keys() - {"request_id", "timings_ms"}:
        assert results[0]["prediction"][key] == alone[key], key


def test_a_kind_that_is_not_decoded_is_named(client: httpx.Client) -> None:
    problem = client.post("/predict", content=encoded(photograph().quantize(8), "GIF")).json()
    assert (problem["status"], problem["title"]) == (415, "Not a supported kind of image")
    assert problem["detail"].startswith("The content is a GIF, which is not decoded; ")


def test_a_colour_profile_that_was_left_out_is_told(client: httpx.Client) -> None:
    answer = client.post("/predict", content=encoded(photograph(), "PNG", icc_profile=b"no profile")).json()
    assert "its colour profile is broken" in answer["image"]["note"]
    assert "note" not in client.post("/predict", content=BLUE).json()["image"]


def test_exif_that_pillow_cannot_write_again_costs_no_answer(client: httpx.Client) -> None:
    odd = with_exif_beyond_pillow(BLUE)
    assert client.post("/predict", content=odd).json()["class"] == "pre"
    results = client.post("/predict/batch", files=[("file", odd), ("file", RED)]).json()["results"]
    assert [each["prediction"]["class"] for each in results] == ["pre", "benign"]


def test_a_batch_is_taken_apart_off_the_event_loop(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    all_files = upload.all_files

    def off_the_loop(request: Request, content: bytes) -> list[bytes]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return all_files(request, content)

    monkeypatch.setattr(upload, "all_files", off_the_loop)
    assert client.post("/predict/batch", files={"file": BLUE}).status_code == 200


def test_an_image_of_a_batch_over_the_limit_of_one_is_told_so_alone(client: httpx.Client) -> None:
    large, small = client.post("/predict/batch", files=[("file", bytes(100_001)), ("file", BLUE)]).json()["results"]
    assert (large["problem"]["status"], large["problem"]["type"]) == (413, "urn:leukdetect:problem:body-too-large")
    assert small["prediction"]["class"] == "pre"


def test_an_image_that_the_server_fails_on_costs_the_rest_of_its_batch_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx")
    with serve(app) as client:
        poison(app)
        answer = client.post("/predict/batch", files=[("file", BLUE), ("file", RED), ("file", BLUE)])
        text = client.get("/metrics").text
    first, failed, last = answer.json()["results"]
    assert first["prediction"]["class"] == last["prediction"]["class"] == "pre"
    assert (failed["prediction"], failed["problem"]["status"]) == (None, 500)
    assert failed["problem"]["request_id"] == f"{answer.headers['x-request-id']}-1"
    assert "secret" not in answer.text
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (record.getMessage(), vars(record)["request_id"]) == ("a request failed", failed["problem"]["request_id"])
    assert 'leukdetect_requests_total{code="500",reason="failed",route="/predict/batch"} 1.0' in text.splitlines()


def poison(app: FastAPI) -> None:
    """Has the model fail on what is red."""
    model = app.state.service.models.champion

    def run(pixels: np.ndarray, outputs: Sequence[str], **_: bool) -> list[np.ndarray]:
        if np.any(pixels[..., 0].mean(axis=(1, 2)) > 150):
            raise RuntimeError("secret-file-name.jpg")
        return session_run(model.session, pixels, outputs)

    object.__setattr__(model, "run", run)


def test_the_datasheet_is_served_as_the_report_is(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "v" / "leukdetect.onnx")
    with serve(app_of(tmp_path / "v" / "leukdetect.onnx")) as client:
        missing = client.get("/model/datasheet")
        assert (missing.status_code, missing.json()["type"].split(":")[-1]) == (404, "no-datasheet")
        (tmp_path / "v" / "datasheet.html").write_text("<!doctype html><title>A sheet</title>")
        answer = client.get("/model/datasheet")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "A sheet" in answer.text


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": BLUE}, 415, "no-form"),
        ({"files": {"other": BLUE}}, 422, "batch-size"),
        ({"files": [("file", BLUE)] * 4}, 413, "batch-size"),
        ({"files": {"file": bytes(150_001)}}, 413, "body-too-large"),
        ({"files": {"file": BLUE}, "headers": {"X-Deadline-Ms": "soon"}}, 400, "bad-deadline"),
    ],
    ids=["no form", "no file", "too many", "too large", "a bad deadline"],
)
def test_a_batch_that_cannot_be_answered_is_one_problem(
    client: httpx.Client, request_: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/predict/batch", **request_)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:leukdetect:problem:{code}")


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "1e3", "NaN", "Infinity", "", "soon", "٣", "9" * 30])
def test_a_deadline_that_is_no_number_is_a_problem(client: httpx.Client, value: str) -> None:
    answer = client.post("/predict", content=BLUE, headers=[(b"X-Deadline-Ms", value.encode())])
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:leukdetect:problem:bad-deadline")


def test_a_generous_deadline_is_not_refused(client: httpx.Client) -> None:
    assert client.post("/predict", content=BLUE, headers={"X-Deadline-Ms": "999999999"}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"deadline_ms": 300}, {}),
        ({"deadline_ms": 20_000}, {"X-Deadline-Ms": "300"}),
        ({"max_deadline_ms": 300}, {"X-Deadline-Ms": "20000"}),
    ],
    ids=["the server's own", "as asked for", "capped"],
)
def test_what_waits_past_its_deadline_is_told_so_and_never_computed(
    tmp_path: Path, settings: dict[str, int], headers: dict[str, str]
) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx", **settings)
    with serve(app) as client, ThreadPoolExecutor() as others:
        model = Slow(app)
        first = others.submit(client.post, "/predict", content=BLUE, headers=headers, timeout=20)
        while not model.images:
            time.sleep(0.01)
        late = others.submit(client.post, "/predict", content=RED, headers=headers, timeout=20)
        while app.state.service.engine.depth != 2:
            time.sleep(0.01)
        time.sleep(0.4)
        model.gate.set()
        assert first.result().status_code == 200
        answer = late.result()
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:leukdetect:problem:expired")
    assert answer.headers["retry-after"] == "1"
    assert model.images == 1


def test_a_client_that_stalls_is_told_so_and_holds_no_memory(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx", read_seconds=0.2, max_buffered_bytes=3_000)
    with serve(app) as client, socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
        slow.settimeout(10)
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + bytes(1500))
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert client.post("/predict", content=bytes(2900)).status_code == 415  # there is room for it again


def test_bodies_together_have_a_limit(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx", max_buffered_bytes=3_000)
    with serve(app) as client, socket.create_connection((client.base_url.host, client.base_url.port)) as first:
        first.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + bytes(2500))
        while (answer := client.post("/predict", content=bytes(1000))).status_code == 415:
            time.sleep(0.01)  # until the server has read the first
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:leukdetect:problem:overloaded")


class Slow:
    """A model that a test holds; counts what it was asked."""

    def __init__(self, app: FastAPI) -> None:
        model = app.state.service.models.champion
        self.gate, self.images = threading.Event(), 0

        def run(pixels: np.ndarray, outputs: Sequence[str], **_: bool) -> list[np.ndarray]:
            self.images += len(pixels)
            assert self.gate.wait(10)
            return session_run(model.session, pixels, outputs)

        object.__setattr__(model, "run", run)


def test_a_client_that_went_away_is_never_computed_and_counted_as_gone(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx")
    with serve(app) as client, ThreadPoolExecutor() as others:
        model = Slow(app)
        first = others.submit(client.post, "/predict", content=BLUE, timeout=20)
        while not model.images:
            time.sleep(0.01)
        with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLUE)}\r\n\r\n"
            leaving.sendall(head.encode() + BLUE)
            while app.state.service.engine.depth != 2:
                time.sleep(0.01)
        while app.state.service.engine.depth != 1:
            time.sleep(0.01)
        model.gate.set()
        assert first.result().status_code == 200
        assert client.post("/predict", content=RED).json()["class"] == "benign"
        assert model.images == 2
        gone = 'leukdetect_requests_total{code="499",reason="client-gone",route="/predict"} 1.0'
        assert gone in client.get("/metrics").text.splitlines()


def test_with_keys_in_use_nobody_asks_anything_of_the_model_without_one(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    write_keys(tmp_path / "keys", f"lis predict {hashlib.sha256(b'secret').hexdigest()}\n")
    with serve(app_of(tmp_path / "m.onnx", keys_file=tmp_path / "keys")) as client:
        for path in ("/predict", "/predict/batch", "/explain", "/feedback", "/v2/models/leukdetect/infer"):
            assert client.post(path, content=BLUE).status_code == 401, path
        assert client.post("/predict", content=BLUE, headers={"X-API-Key": "secret"}).status_code == 200


def test_overload_is_told_at_once_and_leaves_the_server_ready(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx", queue_size=2, deadline_ms=20_000)
    with serve(app) as client, ThreadPoolExecutor() as others:
        model = Slow(app)
        waiting = [others.submit(client.post, "/predict", content=BLUE, timeout=20) for _ in range(2)]
        while app.state.service.engine.depth != 2:
            time.sleep(0.01)
        refused = client.post("/predict", content=BLUE)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:leukdetect:problem:overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/readyz").status_code == client.get("/livez").status_code == 200
        assert client.get("/health").json()["queue_depth"] == 2
        model.gate.set()
        assert [each.result().status_code for each in waiting] == [200, 200]


def test_other_sites_may_call_only_where_they_are_named(client: httpx.Client, tmp_path: Path) -> None:
    origin = {"Origin": "https://lis.example"}
    assert "access-control-allow-origin" not in client.post("/predict", content=BLUE, headers=origin).headers
    tiny_model.write(tmp_path / "m.onnx")
    with serve(app_of(tmp_path / "m.onnx", cors_origins=["https://lis.example"])) as open_to_one:
        answer = open_to_one.post("/predict", content=BLUE, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://lis.example"
        stranger = open_to_one.post("/predict", content=BLUE, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}
        assert open_to_one.options("/predict", headers=origin | asks).status_code == 200
        assert open_to_one.options("/predict", headers={"Origin": "https://evil.example"} | asks).status_code == 400


def test_model_tells_what_serves_in_full(tmp_path: Path) -> None:
    promise = tiny_model.write(tmp_path / "v" / "leukdetect.onnx")
    (tmp_path / "v" / "metrics.json").write_text('{"fp32": {"balanced_accuracy": {"value": 0.9}}}')
    (tmp_path / "v" / "model_card.md").write_text("# A card")
    with serve(app_of(tmp_path / "v" / "leukdetect.onnx")) as client:
        answer = client.get("/model").json()
    assert answer["contract"] == promise.model_dump(mode="json", exclude={"golden"})
    assert answer["metrics"]["fp32"]["balanced_accuracy"]["value"] == 0.9
    assert (answer["model_card"], answer["model"]["version"]) == ("# A card", "7")


def test_the_report_is_served_as_a_page_that_may_run_and_load_nothing(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "v" / "leukdetect.onnx")
    with serve(app_of(tmp_path / "v" / "leukdetect.onnx")) as client:
        assert client.get("/model/report").json()["type"].endswith("no-report")
        (tmp_path / "v" / "report.html").write_text("<!doctype html><title>A report</title>")
        answer = client.get("/model/report")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "A report" in answer.text


def test_other_fields_of_a_form_do_not_matter(client: httpx.Client) -> None:
    answer = client.post("/predict", data={"note": "x"}, files={"file": BLUE, "other": b"text"})
    assert answer.json()["class"] == "pre"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"hello"}, 415, "unsupported-image"),
        ({"json": {"image": "hello"}}, 415, "unsupported-image"),
        ({"content": b""}, 422, "broken-image"),
        ({"content": BLUE[:400]}, 422, "broken-image"),
        ({"files": {"image": BLUE}}, 422, "one-image"),
        ({"files": [("file", BLUE), ("file", RED)]}, 422, "one-image"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "broken-form"),
        ({"content": b"oops", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "broken-form"),
        ({"content": tiny_model.jpeg((9, 9, 9), (200, 200))}, 413, "too-many-pixels"),
        ({"content": bytes(100_001)}, 413, "body-too-large"),
        ({"content": iter([bytes(60_000)] * 2)}, 413, "body-too-large"),
        ({"files": {"file": bytes(100_001)}}, 413, "body-too-large"),
    ],
    ids=[
        "text",
        "json",
        "empty",
        "truncated",
        "wrong field",
        "two files",
        "no boundary",
        "broken form",
        "pixels",
        "bytes",
        "bytes, undeclared",
        "bytes, in a form",
    ],
)
def test_a_bad_upload_is_a_problem_that_says_what_to_do(
    client: httpx.Client, request_: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/predict", **request_)
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert problem["type"] == f"urn:leukdetect:problem:{code}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"]


def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_sent(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/predict", 405)])
def test_the_frameworks_own_errors_are_problems_too(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert answer.json()["status"] == status


def test_what_nobody_expected_tells_the_client_nothing_but_an_id(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get("/broken")
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(record)["request_id"] == answer.headers["x-request-id"]


PLAIN_GETS = [  # all that take nothing
    route.path
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and "GET" in (route.methods or ()) and "{" not in route.path
]
OWN_POLICY = {"/docs"}  # Swagger UI styles inline


def test_every_answer_has_an_id_of_its_own_and_safe_headers(client: httpx.Client) -> None:
    client_s = {"X-Request-Id": "of the client"}
    paths = (*PLAIN_GETS, "/static/app.js", "/openapi.json", "/nowhere", "/broken")
    answers = {path: client.get(path, headers=client_s) for path in paths}
    for name, path, content in (
        ("answered", "/predict", BLUE),
        ("no image", "/predict", b"text"),
        ("too large", "/predict", bytes(100_001)),
        ("no key", "/admin/reload", b""),
        ("another method", "/livez", b""),
        ("protocol", "/v2/models/leukdetect/infer", b"text"),
    ):
        answers[name] = client.post(path, content=content, headers=client_s)
    assert {answer.status_code for answer in answers.values()} >= {200, 400, 403, 404, 405, 413, 415, 500}
    ids = {answer.headers["x-request-id"] for answer in answers.values()}
    assert len(ids) == len(answers)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    for name, answer in answers.items():
        assert answer.headers["x-content-type-options"] == "nosniff", name
        assert answer.headers["referrer-policy"] == "no-referrer", name
        assert answer.headers["cache-control"] == "no-store", name
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, name
        assert "frame-ancestors 'none'" in policy, name
        assert name in OWN_POLICY or "unsafe" not in policy, name


def test_health_tells_what_serves(client: httpx.Client) -> None:
    health = client.get("/health").json()
    assert (health["status"], health["note"], health["queue_depth"]) == ("ok", None, 0)
    assert health["model"]["version"] == "7"
    assert [each["key"] for each in health["classes"]] == ["benign", "early", "pre", "pro"]
    assert health["operating_point"] == 0.4


def test_probes_answer(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_not_ready_once_the_models_thread_is_gone(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx")
    with serve(app) as client:
        app.state.service.engine.close()
        assert client.get("/livez").status_code == 503  # only a restart helps
        assert client.get("/readyz").status_code == 503
        assert client.get("/health").json()["status"] == "degraded"
        answer = client.post("/predict", content=BLUE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("thread", ["drift", "history", "keys", "feedback"])
def test_a_dead_background_thread_is_seen_everywhere(
    tmp_path: Path, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turns(self: Periodic) -> None:
        if self.name == thread:
            raise SystemExit
        really(self)

    really = Periodic._turns
    monkeypatch.setattr(Periodic, "_turns", turns)
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx")
    with serve(app) as client:
        for each in (*app.state.service._periodic, app.state.service.feedback.periodic):
            if each.name == thread:
                each._thread.join(10)
        health, livez, metrics = client.get("/health").json(), client.get("/livez"), client.get("/metrics").text
        assert client.get("/v2/health/live").status_code == livez.status_code == 503
        assert health["status"] == "degraded"
        assert health["note"] == livez.json()["detail"]
        assert health["note"] == f"Background threads that have ended: {thread}. Restart the server."
        for name in ("drift", "history", "keys", "feedback", "inference"):
            assert f'leukdetect_thread_alive{{thread="{name}"}} {float(name != thread)}' in metrics
        assert client.get("/readyz").status_code == 200  # it answers, meanwhile


def test_metrics_count_what_happened(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx")
    with serve(app) as client:
        client.post("/predict", content=BLUE)
        client.post("/predict", content=tiny_model.jpeg((0, 0, 0)))
        client.post("/predict", content=b"text")
        client.get("/no/such/path")
        text = client.get("/metrics").text
    for line in (
        'leukdetect_requests_total{code="200",reason="",route="/predict"} 2.0',
        'leukdetect_requests_total{code="415",reason="unsupported-image",route="/predict"} 1.0',
        'leukdetect_requests_total{code="404",reason="",route="other"} 1.0',
        'leukdetect_predictions_total{class="pre",version="7"} 1.0',
        'leukdetect_referrals_total{reason="too_dark"} 1.0',
        'leukdetect_refusals_total{reason="too_dark"} 1.0',
        *(f'leukdetect_stage_seconds_count{{stage="{each}"}} 2.0' for each in ("read", "decode", "queue", "infer")),
        'leukdetect_request_seconds_count{route="/predict"} 3.0',
        "leukdetect_in_flight 1.0",  # whoever asks for the metrics
        "leukdetect_batch_size_sum 2.0",
        f"leukdetect_threads {float(app.state.service.models.champion.threads)}",
        "leukdetect_confidence_count 2.0",
        "leukdetect_unlikeness_count 2.0",
        'leukdetect_stage_seconds_count{stage="respond"} 2.0',
        'leukdetect_queue_depth{lane="predict"} 0.0',
        "leukdetect_image_megapixels_count 2.0",
    ):
        assert line in text.splitlines()
    assert 'leukdetect_model_info{alias="champion"' in text
    for name, least in (("estimated_wait_seconds", 0), ("resident_bytes", 10_000_000)):
        [value] = re.findall(rf"^leukdetect_{name} (\S+)$", text, re.MULTILINE)
        assert float(value) > least


def test_no_client_chooses_a_label(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    write_keys(tmp_path / "keys", f"zzz-name admin {hashlib.sha256(b'zzz-key').hexdigest()}\n")
    with serve(app_of(tmp_path / "m.onnx", keys_file=tmp_path / "keys")) as client:
        client.headers.update({"X-API-Key": "zzz-key", "User-Agent": "zzz", "X-Request-Id": "zzz", "Origin": "zzz"})
        known = client.post("/predict", content=BLUE).json()["request_id"]
        answers = [
            client.post("/predict?zzz=zzz", files={"file": ("zzz.jpg", BLUE, "image/zzz")}, data={"zzz": "zzz"}),
            client.post("/explain?class=zzz", content=BLUE),
            client.post("/feedback", json={"request_id": "zzz", "class": "zzz"}),
            client.post("/feedback", json={"request_id": known, "class": "zzz"}),
            client.get("/v2/models/zzz"),
            client.get("/v2/models/leukdetect/versions/zzz"),
            client.get("/static/zzz"),
            client.get("/zzz"),
            client.patch("/predict"),
            client.post("/predict", content=BLUE, headers={"X-API-Key": "zzz-other"}),
            client.post("/predict", content=BLUE, headers={"X-Deadline-Ms": "zzz"}),
        ]
        text = client.get("/metrics").text
    assert [each.status_code for each in answers] == [200, 422, 404, 422, 404, 404, 404, 404, 405, 401, 400]
    assert "leukdetect_requests_total{" in text
    assert "zzz" not in text.lower()


def test_a_confirmed_class_is_counted_with_the_answer_that_it_is_about(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    with serve(app_of(tmp_path / "m.onnx")) as client:
        one = client.post("/predict", content=BLUE).json()["request_id"]
        [two] = client.post("/predict/batch", files={"file": BLUE}).json()["results"]
        right = client.post("/feedback", json={"request_id": one, "class": "pre"})
        wrong = client.post("/feedback", json={"request_id": two["prediction"]["request_id"], "class": "early"})
        text = client.get("/metrics").text.splitlines()
    assert (right.json()["agrees"], right.json()["version"]) == (True, "7")
    assert (wrong.json()["agrees"], wrong.json()["predicted"]) == (False, "pre")
    assert 'leukdetect_feedback{agrees="true",class="pre"} 1.0' in text
    assert 'leukdetect_feedback{agrees="false",class="early"} 1.0' in text


def test_openapi_describes_both_uploads_the_answer_and_the_problems(client: httpx.Client) -> None:
    predict = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert {"200", "413", "415", "422", "503"} <= set(predict["responses"])
    assert PROBLEM in predict["responses"]["415"]["content"]


def test_openapi_resolves_and_its_example_is_a_real_answer(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    names = set(schema["components"]["schemas"])
    text = json.dumps(schema)
    for reference in set(text.split('"#/components/schemas/')[1:]):
        assert reference.partition('"')[0] in names
    [example] = schema["components"]["schemas"]["Prediction"]["examples"]
    answer = client.post("/predict", content=BLUE).json()
    assert example.keys() == answer.keys()
    for key in ("quality", "image", "model", "timings_ms"):
        assert example[key].keys() == answer[key].keys()


def test_docs_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "//" not in page
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert client.get(f"/static/swagger-ui/{name}").status_code == 200
