"""Presets of public sets, on a stand-in of each one's layout: from the folder to the prepared images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipeline import fetch, params, prepare, validate
from tests.project import ROOT

Layout = Callable[[str, int], str]  # of a folder's name and an image's number


def hehr(name: str, number: int) -> str:
    patient = "".join(chr(65 + (number // 4 + ord(name[0]) * step) % 26) for step in (1, 3, 7))
    return f"{name}/{patient}/image_{number % 4}.tif"  # equal names under different patients


IMAGES = 60  # a class
LAYOUTS: dict[str, Layout] = {
    "aml_lmu": lambda name, number: f"{name}/{name}_{number + 1:04d}.tiff{'.tiff' * (number == 7)}",
    "aml_hehr": hehr,
    "bmc": lambda name, number: f"{name}/{number // 10:04d}-1000/{name}_{number:05d}.jpg",
    "all_idb": lambda name, number: f"im/Im{number + 1:03d}_{name}.jpg",
}


@pytest.mark.parametrize("preset", LAYOUTS)
def test_a_public_sets_layout_is_understood(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load((ROOT / f"presets/{preset}.yaml").read_text())
    recipe["prepare"]["image_size"] = 32
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    rng = np.random.default_rng(0)
    for each in recipe["classes"]:
        for number in range(IMAGES):
            path = Path(recipe["fetch"]["folder"], LAYOUTS[preset](each["folders"][0], number))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(60, 200, (40, 40, 3), np.uint8)).save(path)
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


def test_a_label_set_of_its_own_has_a_name_of_its_own() -> None:
    names = {path.stem: params.load(path).register_.name for path in (ROOT / "presets").glob("*.yaml")}
    assert {name for preset, name in names.items() if preset in LAYOUTS} == set(LAYOUTS)
