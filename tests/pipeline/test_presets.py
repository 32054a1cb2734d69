"""Presets of public sets, on a rendered stand-in of each one's layout: from the folder to an answer of the server."""

import importlib
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import leukdetect
from pipeline import fetch, params, prepare, validate
from pipeline.data import smears
from pipeline.stage import Problem
from tests.project import LAX, ROOT, TINY

Layout = Callable[[str, int], str]  # of a folder's name and an image's number


def hehr(name: str, number: int) -> str:
    code = zlib.crc32(name.encode()) + number // 4
    patient = "".join(chr(65 + code // step % 26) for step in (1, 26, 676))
    return f"{name}/{patient}/image_{number % 4}.tif"  # equal names under different patients


IMAGES = 60  # a class
LAYOUTS: dict[str, Layout] = {
    "aml_lmu": lambda name, number: f"{name}/{name}_{number + 1:04d}.tiff{'.tiff' * (number == 7)}",
    "aml_hehr": hehr,
    "mll23": lambda name, number: f"{name}/{name}/{name}_{number + 1:04d}.TIF",
    "bmc": lambda name, number: f"{name}/{number // 10:04d}-1000/{name}_{number:05d}.jpg",
    "all_idb": lambda name, number: f"im/Im{number + 1:03d}_{name}.jpg",
    "cll": lambda name, number: f"{name}/{name}_{number + 1:03d}.jpg",
}


def stand_in(preset: str, *, images: int = IMAGES, cells: bool = False, **changes: dict[str, Any]) -> dict[str, Any]:
    """In the current folder: a set of the preset's layout, noise or rendered cells; the preset, changed by section."""
    recipe: dict[str, Any] = yaml.safe_load((ROOT / f"presets/{preset}.yaml").read_text())
    for section, values in changes.items():
        recipe[section] |= values
    recipe["prepare"]["image_size"] = 32
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    rng = np.random.default_rng(0)
    for label, each in enumerate(recipe["classes"]):
        for number in range(images):
            path = Path(recipe["fetch"]["folder"], LAYOUTS[preset](each["folders"][0], number))
            path.parent.mkdir(parents=True, exist_ok=True)
            patient, look = 1 + number // 4 + label * IMAGES, smears.CLASSES[label % len(smears.CLASSES)]
            pixels = smears.render(look, patient, 1, number, 40, 1) if cells else rng.integers(60, 200, (40, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return recipe


@pytest.mark.parametrize("preset", LAYOUTS)
def test_a_public_sets_layout_is_understood(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = stand_in(preset)
    fetch.main()
    validate.main()
    prepare.main()
    split = pd.read_csv("data/prepared/split.csv", dtype={"patient": str}, keep_default_na=False)
    assert split["class"].value_counts().to_dict() == {each["key"]: IMAGES for each in recipe["classes"]}
    assert set(split["split"]) >= {"train", "val", "test"}
    if params.load().prepare.patient:
        assert split.groupby("class")["patient"].nunique().eq(IMAGES // 4).all()
    else:
        assert (split["patient"] == "").all()


def test_a_class_that_the_preset_does_not_know_is_listed_as_it_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in("mll23", images=2)
    Path("MLL23/monocyte").rename("MLL23/monocytes_typical")
    Path("MLL23/monocytes_typical/monocyte").rename("MLL23/monocytes_typical/monocytes_typical")
    with pytest.raises(
        Problem, match=r"belong to no class: monocytes_typical\. Known are basophil: .*fetch\.leave_out"
    ):
        fetch.main()


def test_files_of_mll23_may_lie_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "presets/mll23.yaml").read_text()
    (pattern,) = re.findall(r"label: '(.+?)'", text.partition("seed:")[0])  # as its head says
    recipe = stand_in("mll23", images=2, fetch={"label": pattern})
    for path in list(Path("MLL23").rglob("*.TIF")):
        path.rename(Path("MLL23") / path.name)
    fetch.main()
    assert len(list(Path("data/raw").rglob("*.TIF"))) == 2 * len(recipe["classes"])


def test_a_label_set_of_its_own_has_a_name_of_its_own() -> None:
    names = {path.stem: params.load(path).register_.name for path in (ROOT / "presets").glob("*.yaml")}
    assert {name for preset, name in names.items() if preset in LAYOUTS} == set(LAYOUTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("coarse_figures")
@pytest.mark.parametrize("preset", LAYOUTS)
def test_a_preset_is_trained_registered_served_and_asked(
    preset: str, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.app import create_app
    from serving.models import startup
    from serving.settings import Settings
    from tests.server import serve

    monkeypatch.chdir(tmp_path)
    Path("mlflow.db").write_bytes(empty_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    # Random weights, of few layers, and one epoch: the path is under test, not the accuracy.
    small: dict[str, Any] = {
        "train_head": {"epochs": 1},
        "features": {"weights": "none", "views": 2},
        "model": {"backbone": "VGG16"},
    }
    small |= {"fine_tune": {"epochs": 1, "trainable_from": "all", "batch_norm": "trained"}}
    recipe = stand_in(preset, cells=True, export=TINY["export"], evaluate=TINY["evaluate"], **small)
    Path("gate.yaml").write_text(yaml.safe_dump(LAX))
    for stage in (
        *("fetch", "validate", "prepare", "features", "train_head"),
        *("fine_tune", "calibrate", "export", "evaluate", "register"),
    ):
        importlib.import_module(f"pipeline.{stage}").main()

    card = Path("reports/model_card.md").read_text()
    assert all(limit in card for limit in recipe["wording"]["limits"])
    assert ("| By patient |" in card) == (recipe["evaluate"]["label_of"] == "patient")
    name = recipe["register"]["name"]
    assert leukdetect.open("models/leukdetect.onnx").contract.reference.sides == [40.0] * 21  # of the files' pixels
    settings = Settings(model=f"models:/{name}@champion", cache_dir=tmp_path / "cache")
    image = Image.open(next(path for path in Path("data/raw").rglob("*") if path.is_file()))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with serve(create_app(settings, startup.start(settings))) as client:
        served = client.post("/predict", content=buffer.getvalue(), headers={"Content-Type": "image/png"})
        health = client.get("/health").json()
    assert served.status_code == 200, served.text
    answer = served.json()
    assert set(answer["probabilities"]) == {each["key"] for each in recipe["classes"]}
    assert np.isclose(sum(answer["probabilities"].values()), 1, atol=1e-4)
    malignant = {each["malignant"] for each in recipe["classes"]}
    assert (answer["p_malignant"] is None) == (len(malignant) == 1)
    assert (health["model"]["name"], health["subject"]) == (name, recipe["wording"]["subject"])
