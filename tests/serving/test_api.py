"""The API, over real HTTP, with the server in a thread of the test's own process."""

import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from serving import contract
from serving.app import create_app
from serving.model import load
from serving.registry import Located
from serving.settings import Settings
from serving.startup import Start
from tests import tiny_model

BLUE = tiny_model.jpeg((60, 60, 200))
RED = tiny_model.jpeg((200, 60, 60))
PROBLEM = "application/problem+json"


@contextmanager
def serve(app: FastAPI) -> Iterator[httpx.Client]:
    """Runs `app` on a free loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    settings = Settings(max_body_bytes=100_000, max_pixels=10_000)
    app = create_app(settings, Start(load(Located(path, "7", "champion"))))

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


def test_the_answer_says_everything_that_it_promises(client: httpx.Client) -> None:
    answer = client.post("/predict", content=BLUE).json()
    assert (answer["class"], answer["label"], answer["decision"]) == ("pre", "Pre-B ALL", "report")
    assert list(answer["probabilities"]) == ["benign", "early", "pre", "pro"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["p_malignant"] == pytest.approx(1 - answer["probabilities"]["benign"], abs=1e-5)
    assert answer["malignant"] is True
    assert answer["reasons"] == []
    assert answer["wording"] == "Resembles Pre-B ALL; confirm by flow cytometry."
    expected = {"sha256": hashlib.sha256(BLUE).hexdigest(), "format": "JPEG", "width": 48, "height": 40}
    assert answer["image"] == expected
    assert (answer["model"]["name"], answer["model"]["version"], answer["model"]["alias"]) == (
        "leukdetect",
        "7",
        "champion",
    )
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


def test_every_answer_has_an_id_of_its_own_and_safe_headers(client: httpx.Client) -> None:
    answers = [client.get("/"), client.get("/static/app.js"), client.get("/nowhere"), client.get("/livez")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


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
    app = create_app(Settings(), Start(load(Located(tmp_path / "m.onnx"))))
    with serve(app) as client:
        app.state.service.engine.close()
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        answer = client.post("/predict", content=BLUE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_metrics_count_what_happened(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = create_app(Settings(), Start(load(Located(tmp_path / "m.onnx", "3", "champion"))))
    with serve(app) as client:
        client.post("/predict", content=BLUE)
        client.post("/predict", content=tiny_model.jpeg((0, 0, 0)))
        client.post("/predict", content=b"text")
        client.get("/no/such/path")
        text = client.get("/metrics").text
    for line in (
        'leukdetect_requests_total{code="200",route="/predict"} 2.0',
        'leukdetect_requests_total{code="415",route="/predict"} 1.0',
        'leukdetect_requests_total{code="404",route="other"} 1.0',
        'leukdetect_predictions_total{class="pre",version="3"} 1.0',
        'leukdetect_refusals_total{reason="too_dark"} 1.0',
        'leukdetect_stage_seconds_count{stage="infer"} 2.0',
        "leukdetect_confidence_count 2.0",
        "leukdetect_unlikeness_count 2.0",
        "leukdetect_queue_depth 0.0",
    ):
        assert line in text.splitlines()
    assert 'leukdetect_model_info{alias="champion"' in text
    assert "no/such" not in text


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
