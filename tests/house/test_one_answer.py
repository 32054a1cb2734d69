"""One image, one answer: the library, the server and a scoring job, held to each other on a hundred odd images."""

import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import leukdetect
from leukdetect import model_file
from leukdetect.images import ImageError
from leukdetect.model_file import Model
from leukdetect.registry import Located
from pipeline.scoring import worker
from serving.app import create_app
from serving.models.served import Models
from serving.settings import Settings
from tests import tiny_model
from tests.server import serve

KINDS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16")
SIZES = ((32, 32), (48, 40), (7, 90), (301, 200))


def odd_images() -> dict[str, bytes]:
    """Whatever each format takes of each mode and size, images turned by EXIF, and files that are broken or none."""
    found: dict[str, bytes] = {}
    rng = np.random.default_rng(5)
    for number, (kind, mode, size) in enumerate(product(KINDS, MODES, SIZES)):
        colour = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (40, 30, 50), (128, 128, 120)][number % 5])
        noise = rng.integers(-25, 26, (size[1], size[0], 3))
        image = Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))
        image = (
            Image.fromarray(np.asarray(image.convert("L"), np.uint16) << 8) if mode == "I;16" else image.convert(mode)
        )
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind)
        except (OSError, ValueError):  # not every format takes every mode
            continue
        found[f"{kind} {mode} {size}"] = buffer.getvalue()
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.open(io.BytesIO(tiny_model.jpeg((60, 60, 200)))).save(buffer, "JPEG", exif=exif)
        found[f"orientation {orientation}"] = buffer.getvalue()
    whole = tiny_model.jpeg((200, 60, 60))
    found |= {"empty": b"", "text": b"no image", "half": whole[: len(whole) // 2], "no header": whole[100:]}
    return found


IMAGES = odd_images()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path)
    return leukdetect.open(path)


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[httpx.Client]:
    with serve(create_app(Settings(feedback_db=model.located.path.parent / "feedback.db"), Models(model))) as client:
        yield client


@pytest.fixture(scope="module")
def rows(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The scoring job's rows by image."""
    folder = tmp_path_factory.mktemp("images")
    for number, data in enumerate(IMAGES.values()):
        (folder / f"{number}.img").write_bytes(data)
    paths = [f"{number}.img" for number in range(len(IMAGES))]
    contract = model.contract
    job = worker.Job("", str(folder), contract.name, None, model.sha256, contract.precision, 20_000_000, 40_000_000)
    table = worker.score(paths, job, model, 2, lambda count: None)
    return dict(zip(IMAGES, table.to_pylist(), strict=True))


def test_there_are_a_hundred_of_them_and_both_decisions_among_them(rows: dict[str, dict[str, Any]]) -> None:
    assert len(IMAGES) >= 100
    assert {row["decision"] for row in rows.values()} == {"report", "refer", None}
    assert len({row["class"] for row in rows.values()}) >= 4


@pytest.mark.parametrize("name", IMAGES)
def test_library_server_and_scoring_job_answer_alike(
    name: str, model: Model, client: httpx.Client, rows: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    data, row = IMAGES[name], rows[name]
    (tmp_path / "image").write_bytes(data)
    told = client.post("/predict", content=data)
    if row["error"]:
        with pytest.raises(ImageError) as refused:
            model.predict(data)
        assert told.status_code in (415, 422)
        assert told.json()["detail"] == row["error"] == refused.value.sentence
        return
    answer = model.predict(data)
    assert model.predict(tmp_path / "image") == answer
    served = told.json()
    assert served["class"] == row["class"] == answer.key
    assert served["probabilities"] == answer.probabilities
    assert {key: row[f"p_{key}"] for key in answer.probabilities} == answer.probabilities
    assert served["decision"] == row["decision"] == answer.decision
    assert [each["code"] for each in served["reasons"]] == row["reasons"] == [each.code for each in answer.reasons]
    assert [each["detail"] for each in served["reasons"]] == [each.detail for each in answer.reasons]
    assert served["not_excluded"] == row["not_excluded"] == answer.not_excluded
    assert served["unlikeness"] == row["unlikeness"] == answer.unlikeness
    assert served["quality"] == vars(answer.quality) == {name: row[name] for name in vars(answer.quality)}
    assert (served["wording"], served["malignant"]) == (answer.wording, answer.malignant)


def test_many_at_once_get_the_answer_that_each_gets_alone(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx", precision="int8")
    model = model_file.load(Located(tmp_path / "m.onnx"), threads=2, side_by_side=True)
    beside = 0

    def run(pixels: np.ndarray, outputs: Sequence[str], **how: bool) -> list[np.ndarray]:
        nonlocal beside
        beside += how["beside"]
        time.sleep(0.005)  # so that others come to wait
        return Model.run(model, pixels, outputs, **how)

    served = replace(model)
    object.__setattr__(served, "run", run)
    app = create_app(Settings(feedback_db=tmp_path / "feedback.db", queue_size=200), Models(served))
    with serve(app) as client, ThreadPoolExecutor(16) as clients:
        answers = clients.map(lambda data: client.post("/predict", content=data), IMAGES.values())
        told = dict(zip(IMAGES, answers, strict=True))
    answered = {name: each.json() for name, each in told.items() if each.status_code == 200}
    assert len(answered) > 100
    assert beside > 10
    for name, answer in answered.items():
        alone = model.predict(IMAGES[name])
        assert (answer["probabilities"], answer["decision"]) == (alone.probabilities, alone.decision)


def test_a_pillow_image_and_an_array_get_the_files_answer(model: Model) -> None:
    image = Image.open(io.BytesIO(IMAGES["PNG RGB (301, 200)"]))
    assert model.predict(image) == model.predict(np.asarray(image)) == model.predict(IMAGES["PNG RGB (301, 200)"])


def test_the_librarys_explanation_is_the_servers(model: Model, client: httpx.Client) -> None:
    data = IMAGES["JPEG RGB (48, 40)"]
    ours, theirs = model.explain(data, "early"), client.post("/explain?class=early", content=data).json()
    assert (theirs["class"], theirs["note"]) == (ours.key, ours.note)
    np.testing.assert_allclose(theirs["cam"], ours.cam, atol=5e-5)
    assert len(theirs["overlay"]) > 100
    assert theirs["prediction"]["class"] == ours.answer.key
    with pytest.raises(KeyError, match="benign, early, pre, pro"):
        model.explain(data, "late")
