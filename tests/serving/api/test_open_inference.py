"""The Open Inference Protocol, with Triton's own client and over plain HTTP."""

import hashlib
import json
import socket
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

import leukdetect
from leukdetect import images
from leukdetect.model_file import load
from leukdetect.registry import Located
from serving.api import open_inference, tensors
from serving.app import create_app
from serving.models.served import Models
from serving.problems import ProblemError
from serving.settings import Settings
from tests import tiny_model
from tests.server import ROOT, serve, write_keys
from tests.serving.api.test_api import Slow, app_of

SIZE = tiny_model.SIZE
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (20, 20, 20), (128, 128, 128))
FILES = [tiny_model.jpeg(colour) for colour in COLOURS]
PIXELS = np.stack([images.resize(images.decode(data), SIZE) for data in FILES])
OUTPUTS = {"probabilities": (4,), "unlikeness": (), "embedding": (8,), "cam": (4, 4, 4)}
INFER = "/v2/models/leukdetect/infer"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    with serve(app_of(path, max_batch_files=8)) as client:
        yield client


@pytest.fixture
def server(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as server:
        yield server


def tensor(pixels: np.ndarray, binary: bool) -> triton.InferInput:
    sent = triton.InferInput("image", list(pixels.shape), "UINT8")
    return sent.set_data_from_numpy(pixels, binary_data=binary)


def asked(pixels: np.ndarray = PIXELS[:1], **changes: Any) -> dict[str, Any]:
    """A request in JSON; `changes` to its input."""
    sent = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.tolist()}
    return {"inputs": [sent | changes]}


def binary(head: dict[str, Any], tail: bytes, length: str | None = None) -> dict[str, Any]:
    """A request with a binary tensor, as httpx takes it."""
    text = json.dumps(head).encode()
    return {"content": text + tail, "headers": {tensors.HEADER_LENGTH: length or str(len(text))}}


def in_binary(told: int = PIXELS[:1].nbytes, tail: bytes = PIXELS[:1].tobytes(), **head: Any) -> dict[str, Any]:
    sent = {"name": "image", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3]}
    return binary({"inputs": [sent | {"parameters": {"binary_data_size": told}}]} | head, tail)


def test_tritons_client_finds_server_and_model_alive_and_ready(server: triton.InferenceServerClient) -> None:
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("leukdetect")
    assert server.is_model_ready("leukdetect", "7")
    assert not server.is_model_ready("leukdetect", "8")
    assert not server.is_model_ready("resnet")


def test_metadata_tells_every_tensor(server: triton.InferenceServerClient) -> None:
    assert server.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    expected = {
        "name": "leukdetect",
        "versions": ["7"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, 8]},
            {"name": "unlikeness", "datatype": "FP32", "shape": [-1]},
            {"name": "cam", "datatype": "FP32", "shape": [-1, 4, 4, 4]},
        ],
    }
    assert server.get_model_metadata("leukdetect") == server.get_model_metadata("leukdetect", "7") == expected


def test_the_servers_version_is_the_projects(client: httpx.Client) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "leukdetect.__version__"}
    assert client.get("/v2").json()["version"] == leukdetect.__version__
    assert 'leukdetect_build_info{commit="",onnxruntime="' in (told := client.get("/metrics").text)
    assert f'version="{leukdetect.__version__}"}} 1.0' in told


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("sent_binary", [False, True])
@pytest.mark.parametrize("got_binary", [False, True])
def test_tritons_client_gets_every_output_and_what_predict_answers(
    client: httpx.Client, server: triton.InferenceServerClient, count: int, sent_binary: bool, got_binary: bool
) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=got_binary) for name in OUTPUTS]
    result = server.infer("leukdetect", [tensor(PIXELS[:count], sent_binary)], outputs=wanted, request_id="a-1")
    told = result.get_response()
    assert (told["model_name"], told["model_version"], told["id"]) == ("leukdetect", "7", "a-1")
    assert [each["name"] for each in told["outputs"]] == list(OUTPUTS)
    for name, shape in OUTPUTS.items():
        assert result.as_numpy(name).shape == (count, *shape), name
        assert result.as_numpy(name).dtype == np.float32
    for index in range(count):
        predicted = client.post("/predict", content=FILES[index]).json()
        probabilities = result.as_numpy("probabilities")[index]
        np.testing.assert_allclose(probabilities, list(predicted["probabilities"].values()), atol=1e-6)
        assert result.as_numpy("unlikeness")[index] == pytest.approx(predicted["unlikeness"], abs=1e-4)


def test_json_and_binary_answers_hold_the_very_same_numbers(server: triton.InferenceServerClient) -> None:
    name = "embedding"
    one, other = (
        server.infer("leukdetect", [tensor(PIXELS, True)], outputs=[triton.InferRequestedOutput(name, each)])
        for each in (False, True)
    )
    np.testing.assert_array_equal(one.as_numpy(name), other.as_numpy(name))


def test_without_outputs_the_answer_is_probabilities_and_unlikeness(
    client: httpx.Client, server: triton.InferenceServerClient
) -> None:
    in_json = client.post(INFER, json=asked())
    assert in_json.headers["content-type"] == "application/json"
    assert [each["name"] for each in in_json.json()["outputs"]] == ["probabilities", "unlikeness"]
    assert "id" not in in_json.json()
    by_triton = server.infer("leukdetect", [tensor(PIXELS[:1], True)])  # asks for binary_data_output
    expected = np.float32(in_json.json()["outputs"][0]["data"])
    np.testing.assert_array_equal(by_triton.as_numpy("probabilities").ravel(), expected)
    assert by_triton.get_output("probabilities")["parameters"] == {"binary_data_size": 16}


def test_an_outputs_own_wish_goes_before_the_requests(client: httpx.Client) -> None:
    outputs = [{"name": "unlikeness", "parameters": {"binary_data": False}}, {"name": "probabilities"}]
    answer = client.post(INFER, **in_binary(outputs=outputs, parameters={"binary_data_output": True}))
    length = int(answer.headers["inference-header-content-length"])
    first, second = json.loads(answer.content[:length])["outputs"]
    assert (first["name"], first["shape"], len(first["data"])) == ("unlikeness", [1], 1)
    assert (second["name"], second["parameters"], "data" in second) == (
        "probabilities",
        {"binary_data_size": 16},
        False,
    )
    assert np.frombuffer(answer.content[length:], "<f4").sum() == pytest.approx(1, abs=1e-5)


def test_data_may_be_flat_or_nested_and_its_place_in_the_json_does_not_matter(client: httpx.Client) -> None:
    nested, flat = asked(PIXELS), asked(PIXELS, data=PIXELS.ravel().tolist())
    shuffled = {"id": '"data": [1], \\', "inputs": [dict(reversed(nested["inputs"][0].items()))], "parameters": {}}
    bodies = [
        json.dumps(nested),
        json.dumps(flat),
        json.dumps(shuffled),
        json.dumps(flat, indent=1),
        json.dumps(nested, separators=(",", ":")),
    ]
    answers = [client.post(INFER, content=body).json() for body in bodies]
    assert answers[2].pop("id") == shuffled["id"]
    for answer in answers:
        assert answer == answers[0]


def test_a_version_in_the_path_must_be_the_one_in_service(client: httpx.Client) -> None:
    answer = client.post("/v2/models/leukdetect/versions/7/infer", json=asked())
    assert answer.json() == client.post(INFER, json=asked()).json()
    for path in ("", "/ready", "/infer"):
        method = "POST" if path == "/infer" else "GET"
        for unknown in ("/v2/models/leukdetect/versions/6", "/v2/models/other"):
            answer = client.request(method, unknown + path, json=asked() if method == "POST" else None)
            assert (answer.status_code, list(answer.json())) == (404, ["error"])
            assert answer.headers["x-request-id"]


def test_a_file_without_a_version_has_none_here_either(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    models = Models(load(Located(tmp_path / "m.onnx", None, None), "fp32", 2))
    with serve(create_app(Settings(feedback_db=tmp_path / "feedback.db"), models)) as client:
        assert client.get("/v2/models/leukdetect").json()["versions"] == []
        assert "model_version" not in client.post(INFER, json=asked()).json()
        assert client.get("/v2/models/leukdetect/versions/1").status_code == 404


ONE = PIXELS[:1]
WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty": ({"content": b""}, 400, "JSON"),
    "no JSON": ({"content": b"hello"}, 400, "JSON"),
    "no object": ({"content": b"[]"}, 400, "object"),
    "no inputs": ({"json": {}}, 400, "inputs"),
    "two inputs": ({"json": {"inputs": asked()["inputs"] * 2}}, 400, "one input"),
    "another input": ({"json": asked(name="pixels")}, 400, "'image'"),
    "datatype": ({"json": asked(datatype="FP32")}, 400, "UINT8"),
    "shape": ({"json": asked(shape=[1, 3, SIZE, SIZE])}, 400, f"[N, {SIZE}, {SIZE}, 3]"),
    "no image": ({"json": asked(shape=[0, SIZE, SIZE, 3], data=[])}, 400, "at least one"),
    "a shape of words": ({"json": asked(shape=["1", SIZE, SIZE, 3])}, 400, "inputs.0.shape.0"),
    "too many images": ({"json": asked(np.concatenate([PIXELS, PIXELS]))}, 413, "at most 8"),
    "too little data": ({"json": asked(data=ONE.ravel().tolist()[:-1])}, 400, "whole numbers"),
    "too much data": ({"json": asked(data=[*ONE.ravel().tolist(), 1])}, 400, "whole numbers"),
    "nested otherwise": ({"json": asked(data=ONE.reshape(1, SIZE, 3, SIZE).tolist())}, 400, "nested"),
    "no data": ({"json": asked(data=None)}, 400, "data"),
    "fractions": ({"json": asked(data=(ONE / 255).tolist())}, 400, "0 to 255"),
    "negative": ({"json": asked(data=(-ONE.astype(int)).tolist())}, 400, "0 to 255"),
    "256": ({"json": asked(data=np.full(ONE.shape, 256).tolist())}, 400, "0 to 255"),
    "2**64 + 1": ({"json": asked(data=[2**64 + 1] * ONE.size)}, 400, "0 to 255"),
    "words": ({"json": asked(data=["1"] * ONE.size)}, 400, "numbers"),
    "length: a word": ({"json": asked(), "headers": {tensors.HEADER_LENGTH: "ten"}}, 400, tensors.HEADER_LENGTH),
    "length: negative": ({"json": asked(), "headers": {tensors.HEADER_LENGTH: "-1"}}, 400, tensors.HEADER_LENGTH),
    "length: too long": ({"content": b"{}", "headers": {tensors.HEADER_LENGTH: "3"}}, 400, "has 2 in all"),
    "length: none": (in_binary() | {"headers": {}}, 400, "JSON"),
    "truncated": (in_binary(tail=ONE.tobytes()[:-1]), 400, "3071 bytes after"),
    "left over": (in_binary(tail=ONE.tobytes() + b"x"), 400, "3073 bytes after"),
    "binary of another size": (in_binary(told=6, tail=bytes(6)), 400, "takes 3072 bytes, not 6"),
    "binary size: negative": (in_binary(told=-1), 400, "binary_data_size"),
    "both": (binary(asked(parameters={"binary_data_size": 3072}), ONE.tobytes()), 400, "either"),
    "unknown output": (in_binary(outputs=[{"name": "logits"}]), 400, "probabilities, embedding, unlikeness, cam"),
    "output twice": (in_binary(outputs=[{"name": "cam"}] * 2), 400, "once"),
    "classification": (
        in_binary(outputs=[{"name": "cam", "parameters": {"classification": 2}}]),
        400,
        "classification",
    ),
    "shared memory": (in_binary(told=0, tail=b"", outputs=[{"name": "cam"}]), 400, "takes 3072"),
    "deadline": ({"json": asked(), "headers": {"X-Deadline-Ms": "soon"}}, 400, "X-Deadline-Ms"),
    "compressed": ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "Content-Encoding"),
    "too much JSON": ({"content": b" " * 2_000_001}, 413, "binary"),
    "too much": ({"content": bytes(2_100_000)}, 413, "MB"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_told_in_the_protocols_form(client: httpx.Client, name: str) -> None:
    request, status, told = WRONG[name]
    answer = client.post(INFER, **request)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert told in answer.json()["error"]
    assert answer.headers["x-request-id"]


WRONG_PAIRS = [
    ",1", " ,1", "1,", "1, ", "1 1", "1,1 1", "1]1", "1[1", "1],[1", "1,,1", "1, ,1", "1",
    "1,1.0", "1,1e0", "1,+1", "1,-1", "1,x", "1,true", "1,null", "1,[]", "1,256", "1,99999999999999999999",
]  # fmt: skip


@pytest.mark.parametrize("pair", WRONG_PAIRS)
def test_numbers_are_never_made_up(client: httpx.Client, pair: str) -> None:
    rest = ["1"] * (ONE.size - 2)
    head = json.dumps(asked(data=[]))
    for at in (0, 100, len(rest)):
        for two, status in ((pair, 400), ("1, 1", 200)):
            data = ",".join([*rest[:at], two, *rest[at:]])
            assert client.post(INFER, content=head.replace("[]", f"[{data}]")).status_code == status, at


NUMBERS = st.recursive(st.integers(-1, 256) | st.booleans() | st.just(1.0), lambda some: st.lists(some, max_size=3))


@hypothesis_settings(max_examples=500)
@given(st.lists(NUMBERS, max_size=3) | st.lists(st.integers(0, 255), min_size=2, max_size=2))
@example([1, 2])
@example([[1], [2]])
@example([[1], [True]])
def test_an_array_is_read_as_it_is_or_refused(data: list[Any]) -> None:
    flat = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]
    alike = len({type(each) for each in data}) == 1
    if alike and len(flat) == 2 and all(type(each) is int and 0 <= each <= 255 for each in flat):
        np.testing.assert_array_equal(tensors.read_numbers(data, [2, 1]), flat)
    else:
        with pytest.raises(ProblemError):
            tensors.read_numbers(data, [2, 1])


def test_tritons_client_understands_an_error(server: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=rf"\[N, {SIZE}, {SIZE}, 3\]") as raised:
        server.infer("leukdetect", [tensor(np.zeros((1, 8, 8, 3), np.uint8), True)])
    assert raised.value.status() == "400"


def test_more_images_than_the_lane_has_places_are_answered_in_turns(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    many = np.concatenate([PIXELS] * 8)
    with serve(app_of(tmp_path / "m.onnx", queue_size=2, explain_queue_size=1)) as client:
        one = client.post(INFER, json=asked(PIXELS)).json()["outputs"][0]["data"]
        for output in ("probabilities", "cam"):
            answer = client.post(INFER, json=asked(many) | {"outputs": [{"name": output}]})
            assert answer.status_code == 200
            assert answer.json()["outputs"][0]["shape"][0] == 40
        answer = client.post(INFER, json=asked(many))
        np.testing.assert_allclose(answer.json()["outputs"][0]["data"], one * 8, atol=1e-6)
        assert client.get("/health").json()["queue_depth"] == 0


@pytest.mark.parametrize(("output", "lane"), [("probabilities", "predict"), ("cam", "explain")])
def test_a_full_lane_is_told_with_when_to_try_again_and_a_late_image_with_504(
    tmp_path: Path, output: str, lane: str
) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx", queue_size=2, explain_queue_size=2, deadline_ms=20_000)
    body = asked() | {"outputs": [{"name": output}]}
    with serve(app) as client, ThreadPoolExecutor() as others:
        model = Slow(app)
        first = others.submit(client.post, INFER, json=body, timeout=20)
        while not model.images:
            time.sleep(0.01)
        late = others.submit(client.post, INFER, json=body, headers={"X-Deadline-Ms": "500"}, timeout=20)
        while app.state.service.engine.depth != 2:
            time.sleep(0.01)
        assert f'leukdetect_queue_depth{{lane="{lane}"}} 2.0' in client.get("/metrics").text.splitlines()
        refused = client.post(INFER, json=body)
        assert (refused.status_code, list(refused.json())) == (503, ["error"])
        assert int(refused.headers["retry-after"]) >= 1
        time.sleep(0.6)
        model.gate.set()
        assert first.result().status_code == 200
        assert (late.result().status_code, list(late.result().json())) == (504, ["error"])
        text = client.get("/metrics").text.splitlines()
    for code, reason in ((503, "overloaded"), (504, "expired")):
        route = open_inference.NAMED + "/infer"
        assert f'leukdetect_requests_total{{code="{code}",reason="{reason}",route="{route}"}} 1.0' in text


def test_a_client_that_went_away_leaves_its_images_uncomputed(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx")
    with serve(app) as client, ThreadPoolExecutor() as others:
        model = Slow(app)
        first = others.submit(client.post, INFER, json=asked(), timeout=20)
        while not model.images:
            time.sleep(0.01)
        body = json.dumps(asked(PIXELS)).encode()
        with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
            leaving.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            while app.state.service.engine.depth == 1:
                time.sleep(0.01)
        while app.state.service.engine.depth != 1:
            time.sleep(0.01)
        model.gate.set()
        assert first.result().status_code == 200
        assert client.post(INFER, json=asked()).status_code == 200
        assert model.images == 2


def test_health_is_open_and_the_rest_takes_a_key(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    write_keys(tmp_path / "keys", f"lis predict {hashlib.sha256(b'secret').hexdigest()}\n")
    with serve(app_of(tmp_path / "m.onnx", keys_file=tmp_path / "keys")) as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/leukdetect/ready"):
            assert client.get(path).status_code == 200
        for method, path in (("GET", "/v2"), ("GET", "/v2/models/leukdetect"), ("POST", INFER)):
            body = asked() if method == "POST" else None
            refused = client.request(method, path, json=body)
            assert (refused.status_code, list(refused.json())) == (401, ["error"])
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert client.request(method, path, json=body, headers={"X-API-Key": "secret"}).status_code == 200


def test_health_tells_when_the_models_thread_is_gone(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx")
    with serve(app) as client:
        app.state.service.engine.close()
        assert (client.get("/v2/health/live").status_code, client.get("/v2/health/live").json()) == (
            503,
            {"live": False},
        )
        assert (client.get("/v2/health/ready").status_code, client.get("/v2/health/ready").json()["ready"]) == (
            503,
            False,
        )
        model = client.get("/v2/models/leukdetect/ready")
        assert (model.status_code, model.json()) == (503, {"name": "leukdetect", "ready": False})
        answer = client.post(INFER, json=asked())
        assert (answer.status_code, list(answer.json()), answer.headers["retry-after"]) == (503, ["error"], "1")


def test_openapi_has_the_protocols_form_for_every_error(client: httpx.Client) -> None:
    responses = client.get("/openapi.json").json()["paths"][open_inference.VERSIONED + "/infer"]["post"]["responses"]
    for status in ("400", "401", "404", "413", "415", "503", "504"):
        schema = responses[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
