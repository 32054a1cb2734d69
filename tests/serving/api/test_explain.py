"""POST /explain, over real HTTP."""

import base64
import hashlib
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import leukdetect
from leukdetect import explanation
from tests import tiny_model
from tests.server import serve, write_keys
from tests.serving.api.test_api import PROBLEM, Slow, app_of

GREY, BLUE = (128, 128, 128), (0, 0, 255)


def png(size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> bytes:
    """Grey, with a blue box (left, upper, right, lower): the tiny model's map for `pre` is bright there."""
    image = Image.new("RGB", size, GREY)
    if box:
        image.paste(BLUE, box)
    return saved(image)


def saved(image: Image.Image, kind: str = "PNG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def pixels(overlay: str) -> np.ndarray:
    """Of the data: URL, int [H, W, 3]."""
    kind, _, content = overlay.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)


CORNER = png((64, 48), (48, 36, 64, 48))  # the lower right sixteenth


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    with serve(app_of(path, max_body_bytes=1_000_000)) as client:
        yield client


def test_the_map_is_highest_where_the_class_is_seen(client: httpx.Client) -> None:
    answer = client.post("/explain?class=pre", content=png((32, 32), (24, 24, 32, 32))).json()
    assert (answer["class"], answer["label"]) == ("pre", "Pre-B ALL")
    cam = np.array(answer["cam"])
    assert cam.shape == (4, 4)
    assert cam[3, 3] == 1
    np.testing.assert_allclose(np.delete(cam.ravel(), 15), 128 / 255, atol=1e-4)


def test_the_overlay_is_the_image_itself_coloured_where_the_map_is_high(client: httpx.Client) -> None:
    # Black but for the corner, so that the map for `pre` is 0 elsewhere.
    image = Image.new("RGB", (64, 48))
    image.paste(BLUE, (48, 36, 64, 48))
    laid = pixels(client.post("/explain?class=pre", content=saved(image)).json()["overlay"])
    assert laid.shape == (48, 64, 3)
    assert laid[:30, :40].max() == 0
    yellow = np.array([253, 231, 37])
    expected = explanation.OPACITY * yellow + (1 - explanation.OPACITY) * np.array(BLUE)
    assert np.abs(laid[-1, -1] - expected).max() <= 2
    greens = laid[-1, 40:56, 1]  # from the middle of one cell of the map to the next
    assert np.all(np.diff(greens) >= 0)
    assert len(set(greens)) > 10  # without a step


def test_the_map_lies_on_the_upright_image(client: httpx.Client) -> None:
    # Stored on its side: shown upright, the box at the stored image's upper right is at the lower right.
    stored = Image.new("RGB", (64, 48))
    stored.paste(BLUE, (48, 0, 64, 12))
    answer = client.post("/explain?class=pre", content=saved(stored, orientation=6)).json()
    assert pixels(answer["overlay"]).shape == (64, 48, 3)
    assert answer["cam"][3][3] == 1
    assert pixels(answer["overlay"])[-1, -1].sum() > 300
    assert pixels(answer["overlay"])[0].max() == 0


@pytest.mark.parametrize(
    ("size", "shown"),
    [((2000, 1000), (1024, 512)), ((30, 20), (30, 20)), ((1, 3000), (1, 1024))],
    ids=["large", "small", "a line"],
)
def test_the_overlay_keeps_the_aspect_and_has_a_bound(
    client: httpx.Client, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    answer = client.post("/explain", content=png(size)).json()
    assert pixels(answer["overlay"]).shape == (shown[1], shown[0], 3)


def test_without_a_class_it_is_the_one_that_predict_answers(client: httpx.Client) -> None:
    predicted = client.post("/predict", content=CORNER).json()
    answer = client.post("/explain", files={"file": CORNER}).json()
    assert answer["class"] == answer["prediction"]["class"] == predicted["class"]
    for key in predicted.keys() - {"request_id", "timings_ms"}:
        assert answer["prediction"][key] == predicted[key], key


def test_attention_lies_beside_the_map_where_the_model_has_it(client: httpx.Client, tmp_path: Path) -> None:
    assert client.post("/explain", content=CORNER).json()["attention"] is None
    tiny_model.write(tmp_path / "m.onnx", attention=True)
    with serve(app_of(tmp_path / "m.onnx")) as other:
        weights = np.array(other.post("/explain", content=CORNER).json()["attention"])
    assert weights.shape == (4, 4)
    assert weights.sum() == pytest.approx(1, abs=1e-3)
    assert weights.argmin() == 15  # the tiny model's goes to what is bright, and grey is brighter than blue
    ours = leukdetect.open(tmp_path / "m.onnx").explain(CORNER).attention
    assert ours is not None
    np.testing.assert_allclose(weights, ours, atol=5e-5)


def test_where_nothing_speaks_for_a_class_the_map_is_zero_and_the_image_untouched(client: httpx.Client) -> None:
    answer = client.post("/explain?class=pro", content=CORNER).json()  # no colour speaks for it
    assert not np.any(answer["cam"])
    assert answer["note"].startswith(
        "The map is empty: no part of this image spoke more for Pro-B ALL than against it."
    )
    np.testing.assert_array_equal(pixels(answer["overlay"]), np.asarray(Image.open(io.BytesIO(CORNER))))


def test_what_speaks_against_a_class_is_nothing() -> None:
    np.testing.assert_array_equal(explanation.scaled(np.array([[-4, 1], [0, 2]], np.float32)), [[0, 0.5], [0, 1]])
    np.testing.assert_array_equal(explanation.scaled(np.array([[-4, -1]], np.float32)), [[0, 0]])


def test_the_note_calls_it_a_view_and_no_evidence_and_says_what_the_model_was_trained_on(client: httpx.Client) -> None:
    note = client.post("/explain?class=early", content=CORNER).json()["note"]
    assert note.startswith("Where the model looked for Early Pre-B ALL.")
    assert "not evidence" in note
    assert note.endswith("Trained on rendered images: no clinical meaning.")


def test_who_prefers_a_png_gets_the_overlay_with_the_note_inside(client: httpx.Client) -> None:
    asked = client.post("/explain?class=pre", content=CORNER, headers={"Accept": "image/png"})
    told = client.post("/explain?class=pre", content=CORNER).json()
    assert asked.headers["content-type"] == "image/png"
    assert asked.content == base64.b64decode(told["overlay"].partition(",")[2])
    picture = Image.open(io.BytesIO(asked.content))
    picture.load()
    assert picture.info["Description"] == told["note"]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/*", "image/png"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("text/html, image/png;q=0.1", "image/png"),
        ("*/*", "application/json"),
        ("", "application/json"),
        ("image/avif,image/webp,*/*;q=0.8", "application/json"),
        ("image/png;q=0.9, application/json", "application/json"),
        ("image/*, image/png;q=0", "application/json"),
        ("image/png;q=much", "application/json"),
    ],
)
def test_the_accept_header_is_weighed(client: httpx.Client, accept: str, media_type: str) -> None:
    answer = client.post("/explain", content=CORNER, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)


def test_an_unknown_class_is_a_problem_that_names_the_classes(client: httpx.Client) -> None:
    answer = client.post("/explain?class=PRE", content=CORNER)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    assert answer.json()["type"] == "urn:leukdetect:problem:unknown-class"
    assert "benign, early, pre, pro" in answer.json()["detail"]


def test_a_bad_upload_is_the_same_problem_as_for_predict(client: httpx.Client) -> None:
    for body in (b"text", CORNER[:100], bytes(1_000_001)):
        refused, told = client.post("/explain", content=body), client.post("/predict", content=body)
        assert (refused.status_code, refused.json()["type"]) == (told.status_code, told.json()["type"])
        assert refused.status_code >= 400


def test_an_explanation_is_neither_counted_nor_kept_as_a_prediction(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    with serve(app_of(tmp_path / "m.onnx")) as client:
        answer = client.post("/explain", content=CORNER).json()
        confirm = {"request_id": answer["prediction"]["request_id"], "class": "pre"}
        assert client.post("/feedback", json=confirm).status_code == 404
        text = client.get("/metrics").text
    assert "leukdetect_predictions_total{" not in text
    assert 'leukdetect_requests_total{code="200",reason="",route="/explain"} 1.0' in text.splitlines()


def test_it_takes_a_key_where_keys_are_in_use(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    write_keys(tmp_path / "keys", f"lis predict {hashlib.sha256(b'secret').hexdigest()}\n")
    with serve(app_of(tmp_path / "m.onnx", keys_file=tmp_path / "keys")) as client:
        assert client.post("/explain", content=CORNER).status_code == 401
        assert client.post("/explain", content=CORNER, headers={"X-API-Key": "secret"}).status_code == 200


def test_a_full_lane_of_explanations_is_told_at_once_and_leaves_predictions_room(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    app = app_of(tmp_path / "m.onnx", explain_queue_size=1, deadline_ms=20_000)
    with serve(app) as client, ThreadPoolExecutor() as others:
        model = Slow(app)
        explained = others.submit(client.post, "/explain", content=CORNER, timeout=20)
        while not model.images:
            time.sleep(0.01)
        refused = client.post("/explain", content=CORNER)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:leukdetect:problem:overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        predicted = others.submit(client.post, "/predict", content=CORNER, timeout=20)
        while app.state.service.engine.depth != 2:
            time.sleep(0.01)
        model.gate.set()
        assert explained.result().status_code == predicted.result().status_code == 200


def test_drawing_blocks_neither_probes_nor_predictions_and_cannot_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, gate, overlay = threading.Event(), threading.Event(), explanation.overlay

    def held(*args: Any) -> bytes:
        draws.set()
        assert gate.wait(10)
        return overlay(*args)

    monkeypatch.setattr(explanation, "overlay", held)
    tiny_model.write(tmp_path / "m.onnx")
    with serve(app_of(tmp_path / "m.onnx", explain_queue_size=1)) as client, ThreadPoolExecutor() as others:
        explained = others.submit(client.post, "/explain", content=CORNER, timeout=20)
        assert draws.wait(10)
        assert client.get("/livez").status_code == 200
        assert client.post("/predict", content=CORNER).status_code == 200
        assert client.post("/explain", content=CORNER).status_code == 503
        gate.set()
        assert explained.result().status_code == 200


@pytest.fixture(scope="module", params=[True, False], ids=["pictures", "no pictures"])
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path, index=tiny_model.index(thumbnails=request.param))
    with serve(app_of(path)) as client:
        yield client


def test_similar_cases_are_the_nearest_training_images_with_their_classes(indexed: httpx.Client) -> None:
    blue = saved(Image.new("RGB", (40, 40), (2, 2, 200)))
    answer = indexed.post("/explain?class=benign", content=blue).json()  # whatever class is asked about
    cases = answer["similar"]
    assert len(cases) == 5
    assert [each["class"] for each in cases[:2]] == ["pre", "pre"]
    assert cases[0]["label"] == "Pre-B ALL"
    assert cases[0]["id"] in ("20" * 6, "21" * 6)
    distances = [each["distance"] for each in cases]
    assert distances == sorted(distances)
    assert 0 <= distances[0] < 0.1 < distances[2] <= 2


def test_a_thumbnail_is_there_where_the_model_file_has_one(
    indexed: httpx.Client, request: pytest.FixtureRequest
) -> None:
    blue = saved(Image.new("RGB", (40, 40), (0, 0, 200)))
    first = indexed.post("/explain", content=blue).json()["similar"][0]
    if "no pictures" in request.node.name:
        assert first["thumbnail"] is None
        return
    kind, _, content = first["thumbnail"].partition(",")
    assert kind == "data:image/webp;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)
    assert shown[..., 2].min() > 100 > shown[..., :2].max()


def test_a_model_file_from_before_there_was_an_index_has_no_similar_cases(client: httpx.Client) -> None:
    assert client.post("/explain", content=CORNER).json()["similar"] == []


def test_openapi_has_both_answers(client: httpx.Client) -> None:
    explained = client.get("/openapi.json").json()["paths"]["/explain"]["post"]
    assert set(explained["responses"]["200"]["content"]) == {"application/json", "image/png"}
    assert {"class", "X-Deadline-Ms"} <= {each["name"] for each in explained["parameters"]}
    assert {"413", "422", "503", "504"} <= set(explained["responses"])
