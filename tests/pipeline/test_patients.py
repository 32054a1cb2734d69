"""Nothing that names a patient leaves `data/`: a seeded name is looked for in all that the stages write and say."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from leukdetect import contract
from pipeline import calls, evaluate, fetch, outside, prepare, register, validate
from pipeline.stage import Problem
from tests import tiny_model
from tests.project import ROOT

pytestmark = pytest.mark.usefixtures("coarse_figures")
NAME = "anna-mueller"
COLOURS = {"benign": (150, 110, 110), "early": (110, 150, 110), "pre": (110, 110, 150), "pro": (75, 75, 75)}


@pytest.fixture
def ward(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images whose names name patients, a recipe for it, and the model files of training."""
    monkeypatch.chdir(tmp_path)
    Path("mlflow.db").write_bytes(empty_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipe["fetch"] |= {"source": "folder", "folder": str(tmp_path / "ward"), "origin": "Our ward", "licence": "None"}
    recipe["fetch"] |= {"thumbnails": False, "synthetic": False}
    recipe["prepare"] |= {"image_size": tiny_model.SIZE, "patient": r"^(?P<patient>.+)-\d+$"}
    recipe["validate"] |= {"min_images_per_class": 20}
    recipe["evaluate"]["bootstrap"] = 100
    Path("gate.yaml").write_text((ROOT / "gate.yaml").read_text().replace("mode: enforce", "mode: dry-run"))
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    rng = np.random.default_rng(4)
    for key, colour in COLOURS.items():
        for patient in range(16):
            for image in range(2):
                path = tmp_path / f"ward/{key}/{NAME}-{key}-{patient}-{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((48, 48))
                Image.blend(noise, Image.new("RGB", (48, 48), colour), 0.6).save(path)
    return tmp_path


def test_a_patients_name_stays_in_data(
    ward: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.main()
    fetch.main()
    validate.main()
    prepare.main()
    groups = set(pd.read_csv("data/prepared/split.csv")["group"])
    assert all(NAME in group for group in groups)

    tiny_model.write(evaluate.FP32, bias=26.0)
    tiny_model.write(evaluate.INT8, precision="int8", bias=28.0)
    write_history()
    evaluate.main()
    register.main()
    monkeypatch.setattr(sys, "argv", ["calls"])
    calls.main()
    assert NAME in Path("data/calls/calls.csv").read_text()  # which a haematologist needs
    said = "".join(capsys.readouterr())
    assert NAME not in said

    theirs = (ward / "data", ward / "ward")
    written = [path for path in ward.rglob("*") if path.is_file() and not any(map(path.is_relative_to, theirs))]
    names = {path.relative_to(ward).as_posix() for path in written}
    assert names >= {"mlflow.db", "reports/predictions.csv", "reports/model_card.md", "reports/plots/slices.csv"}
    assert any(name.startswith("mlartifacts/") and name.endswith(contract.FILES["fp32"]) for name in names)
    assert not [path for path in written if NAME.encode() in path.read_bytes()]
    # The pictures that show images of the data do not reach MLflow, whose users may be others.
    shown = {path.name for path in written if "mlartifacts" in path.parts}
    assert "roc.png" in shown
    assert not shown & {"mistakes.png", "overlays.png"}


def test_one_field_under_two_patients_is_an_error_that_names_both(ward: Path) -> None:
    first, other = (ward / f"ward/benign/{NAME}-benign-{patient}-0.png" for patient in (3, 7))
    Image.open(first).resize((60, 60)).save(other)  # saved anew, so that no checksum tells
    fetch.main()
    validate.main()
    with pytest.raises(
        Problem, match=rf"one field under two patients, 1 times, first benign/{first.name} and .*{other.name}"
    ):
        prepare.main()
    assert not Path("data/prepared").exists()


def write_history() -> None:
    for phase in ("train_head", "fine_tune"):
        path = Path("reports/history") / f"{phase}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("epoch,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds\n1,1,0.5,1,0.5,0.1,1\n")


def test_where_a_label_is_the_patients_two_classes_of_one_are_an_error(ward: Path) -> None:
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    recipe["evaluate"]["label_of"] = "patient"
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    (ward / f"ward/benign/{NAME}-benign-3-0.png").rename(ward / f"ward/early/{NAME}-benign-3-0.png")
    fetch.main()
    validate.main()
    with pytest.raises(Problem, match=f"patient {NAME}-benign-3 has images of benign and early, but evaluate.label_of"):
        prepare.main()


def test_patients_may_be_folders_above_the_classes_and_have_several(ward: Path) -> None:
    """ward/p07/benign/1.png: equal names under each patient, and each with images of two classes."""
    for path in (ward / "ward").rglob("*.png"):
        key, patient, image = path.parent.name, int(path.stem.split("-")[-2]), path.stem.split("-")[-1]
        neighbour = patient + 16 * (list(COLOURS).index(key) // 2)  # benign and early are one's, pre and pro another's
        moved = ward / f"clinic/p{neighbour:02}/{key}/{image}.png"
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    recipe["fetch"]["folder"] = str(ward / "clinic")
    recipe["prepare"]["patient"] = r"/(?P<patient>p\d+)/"
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(Problem, match=r"have one name: .* set fetch\.label to a pattern of the path, which keeps them"):
        fetch.main()
    recipe["fetch"]["label"] = "/(?P<label>[^/]+)/[^/]+$"
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    for stage in (fetch, validate, prepare):
        stage.main()
    split = pd.read_csv("data/prepared/split.csv", dtype=str)
    assert split["patient"].nunique() == 32
    assert split.groupby("patient")["class"].nunique().eq(2).all()
    assert split.groupby("patient")["split"].nunique().eq(1).all()
    assert split.groupby("split")["class"].nunique().eq(4).all()
    tiny_model.write(evaluate.FP32, bias=26.0)
    tiny_model.write(evaluate.INT8, precision="int8", bias=28.0)
    write_history()
    evaluate.main()
    register.main()
    held_out = split.loc[split["split"] == "test", "patient"].nunique()
    assert f"in {held_out} groups, " in Path("reports/model_card.md").read_text()
