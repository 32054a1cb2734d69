"""The list for a haematologist, what comes back of it, and the cases of a blinded study."""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from PIL import Image

from leukdetect import images
from pipeline import calls
from pipeline.evaluation import reader_study
from pipeline.model_file import similar_index
from pipeline.stage import Problem
from tests import tiny_model, trained_folds
from tests.project import ROOT

KEYS = [each.key for each in tiny_model.CLASSES]
COLOURS = {"benign": (190, 70, 70), "early": (70, 190, 70), "pre": (70, 70, 190), "pro": (36, 36, 36)}
ODD = {  # test images, by what is odd about them: the colour, and the label
    "wrong": ((190, 70, 70), "pro"),  # looks benign
    "uncertain": ((128, 132, 126), "early"),  # between three
    "unlike": ((254, 254, 254), "benign"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten training and three test images a class, a test image of each odd kind, and model files with an index."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    rows: list[list[Any]] = []
    pixels: list[np.ndarray] = []

    def add(name: str, key: str, colour: tuple[int, int, int], split: str) -> None:
        path = Path("data/raw", key, f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(rows)).integers(-9, 10, (40, 40, 3))
        image = Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
        image.save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append([f"{key}/{name}.png", key, KEYS.index(key), sha256, "", f"{name}-group", split])
        pixels.append(images.resize(image, tiny_model.SIZE))

    for key, colour in COLOURS.items():
        for number in range(13):
            add(f"anna-{key}-{number:02}", key, colour, "train" if number < 10 else "test")
    for name, (colour, key) in ODD.items():
        add(f"anna-{name}", key, colour, "test")
    columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
    split = pd.DataFrame(rows, columns=columns)
    Path("data/prepared").mkdir()
    np.save("data/prepared/images.npy", np.array(pixels))
    split.to_csv("data/prepared/split.csv", index=False)
    tiny_model.write(calls.FP32, bias=14.0)
    train = split[split["split"] == "train"]
    seen = np.array(pixels)[train.index]
    (embedding,) = onnxruntime.InferenceSession(calls.FP32).run(["embedding"], {"image": seen})
    index = similar_index.fit(embedding, train["label"].to_numpy(), train["sha256"].tolist(), None)
    tiny_model.write(calls.FP32, bias=14.0, index=index)
    tiny_model.write(calls.INT8, bias=14.0, precision="int8", index=index)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["calls", *arguments])
    calls.main()


def test_the_list_names_the_images_to_look_at_and_nothing_leaves_data(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    listed = pd.read_csv("data/calls/calls.csv", keep_default_na=False)
    why = dict(zip(listed["image"], listed["why"], strict=True))
    assert set(why) == {"pro/anna-wrong.png", "early/anna-uncertain.png", "benign/anna-unlike.png"}
    for name, reasons in why.items():
        assert Path(name).stem.removeprefix("anna-") in reasons.split()
    wrong = listed.set_index("image").loc["pro/anna-wrong.png"]
    assert (wrong["class"], wrong["predicted"], wrong["reader"], wrong["note"]) == ("pro", "benign", "", "")
    near = wrong["similar"].split("; ")
    assert len(near) == 5
    assert all(path.startswith("benign/anna-benign-") for path in near)
    page = Path("data/calls/calls.html").read_text()
    assert page.count("<section>") == 3
    assert page.count('alt="Where the model looked"') == 3
    assert page.count('alt="A similar training image"') == 15
    assert "Colours of the map" in page
    assert not re.search(r"<script|<link|https?:|url\(|@import", page)
    assert "anna" not in capsys.readouterr().out
    outside = [path for path in project.rglob("*") if path.is_file() and not path.is_relative_to(project / "data")]
    assert not [path for path in outside if b"anna" in path.read_bytes()]
    with pytest.raises(Problem, match="data/calls is there already, and a reader may have filled it in"):
        run(monkeypatch)


def test_with_folds_all_images_are_listed_as_the_model_that_did_not_see_them_answered(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Similar cases are those that this model learnt from, in its own features."""
    split = pd.read_csv("data/prepared/split.csv", dtype={"patient": str}, keep_default_na=False).assign(split="train")
    split.to_csv("data/prepared/split.csv", index=False)
    fold = np.arange(len(split)) % 2
    trained_folds.recipe(2)
    trained_folds.write(split, np.load("data/prepared/images.npy"), fold, biases=(14.0, -90.0))  # the second: never pro
    run(monkeypatch)
    listed = pd.read_csv("data/calls/calls.csv", keep_default_na=False).set_index("image")
    fold_of = dict(zip(split["path"], fold, strict=True))
    wrong = {image for image, why in listed["why"].items() if image.startswith("pro/") and "wrong" in why.split()}
    by_second = {path for path in split["path"] if path.startswith("pro/") and fold_of[path] == 1}
    assert wrong == by_second | {"pro/anna-wrong.png"}
    for image, near in listed["similar"].items():
        assert all(fold_of[path] != fold_of[image] for path in near.split("; "))


def test_what_a_reader_fills_in_gives_agreement_and_suspected_labels(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    path = Path("data/calls/calls.csv")
    listed = pd.read_csv(path, keep_default_na=False)
    said = {"wrong": "Benign (hematogone)", "uncertain": "early", "unlike": "unclear"}
    listed["reader"] = [said[Path(name).stem.removeprefix("anna-")] for name in listed["image"]]
    listed.to_csv(path, index=False, sep=";", encoding="cp1252")  # as Excel may save it
    run(monkeypatch, "--read", str(path))
    printed = capsys.readouterr().out
    assert "3 images read, 1 of them unclear" in printed
    assert "reader and label: 1 of 2 alike, 0.500" in printed
    assert "reader and model: 2 of 2 alike, 1.000" in printed
    suspected = pd.read_csv("data/calls/suspected.csv")
    assert suspected["image"].tolist() == ["pro/anna-wrong.png"]
    assert suspected["against"].tolist() == ["reader and model"]

    for wrong, message in (
        ("leukaemia", "line 2: 'leukaemia' is no class; use benign, early, pre, pro or unclear"),
        ("", "empty everywhere"),
    ):
        listed.assign(reader=wrong).to_csv(path, index=False)
        with pytest.raises(Problem, match=message):
            run(monkeypatch, "--read", str(path))
    with pytest.raises(Problem, match=r"none.csv is missing; `python -m pipeline\.calls` writes"):
        run(monkeypatch, "--read", "none.csv")


def test_a_study_is_blinded_and_its_forms_are_read_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--study", "reader-1", "reader-2", "--most", "8")
    folder = Path("data/study")
    key = pd.read_csv(folder / "key.csv", dtype=str)
    assert key["truth"].value_counts().to_dict() == dict.fromkeys(KEYS, 2)  # evenly
    assert key["truth"].tolist() != sorted(key["truth"])  # the cases' numbers tell no class
    forms = {
        name: pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False) for name in ("reader-1", "reader-2")
    }
    assert forms["reader-1"]["case"].tolist() != forms["reader-2"]["case"].tolist()
    for form in forms.values():
        assert list(form) == ["case", "call"]
        assert sorted(form["case"]) == sorted(key["case"])
    truth = dict(zip(key["case"], key["truth"], strict=True))
    for case in key["case"]:
        with Image.open(folder / f"images/{case}.png") as image:
            assert image.info == {}
    assert not [path for path in folder.rglob("*") if path.is_file() and b"anna" in path.read_bytes()]

    with pytest.raises(Problem, match=r"reader-1\.csv: 8 cases have no call, first"):
        reader_study.read(folder)
    for name, form in forms.items():
        form.assign(call=form["case"].map(truth)).to_csv(folder / f"{name}.csv", index=False)
    text = reader_study.report(*reader_study.read(folder), ["benign"], "model")
    assert "8 cases of 8 patients, 6 of them malignant; 2 readers and model" in text
    assert re.search(r"reader-2 +1\.000 \[1\.000, 1\.000\]", text)
