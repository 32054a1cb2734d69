"""`python -m pipeline.cross_validate` on a small project: four real trainings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import cross_validate
from pipeline.data import smears
from pipeline.stage import Problem
from tests import trained_folds
from tests.project import ROOT

SIZE, PATIENTS, IMAGES = 32, 6, 2


def write_data(root: Path) -> pd.DataFrame:
    """Prepared images, all in the training split, and their split.csv."""
    cells = [(c, p, i) for c in range(4) for p in range(1, PATIENTS + 1) for i in range(1, IMAGES + 1)]
    names = [f"{smears.CLASSES[c]}-p{p:03d}" for c, p, _ in cells]
    split = pd.DataFrame(
        {
            "path": [f"{smears.CLASSES[c]}/{name}-{i}.jpg" for name, (c, _, i) in zip(names, cells, strict=True)],
            "class": [smears.CLASSES[c] for c, _, _ in cells],
            "label": [c for c, _, _ in cells],
            "sha256": [f"{row:012x}" + "0" * 52 for row in range(len(cells))],
            "patient": names,
            "group": names,
            "split": "train",
        }
    )
    (root / "data/prepared").mkdir(parents=True)
    split.to_csv(root / "data/prepared/split.csv", index=False)
    pixels = [smears.render(smears.CLASSES[c], p, 1, i, SIZE, seed=1) for c, p, i in cells]
    np.save(root / "data/prepared/images.npy", np.stack(pixels))
    return split


@pytest.mark.parametrize("wrong", [["--folds", "1"], ["--shares", "0"], ["--shares", "0.5", "2"]])
def test_folds_and_shares_that_cannot_be_are_refused(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cross_validate", *wrong])
    with pytest.raises(Problem, match="--folds must be 2 or more and --shares above 0 and at most 1, not"):
        cross_validate.main()


class Undecided:
    def predict(self, pixels: np.ndarray, **options: object) -> np.ndarray:
        return np.full((len(pixels), 4), 0.25)


@pytest.mark.parametrize(("estimate", "validates"), [([], True), ([0, 1, 2], False)])
def test_a_recipe_with_folds_of_its_own_is_trained_as_those_are_without_validation(
    estimate: list[int],
    validates: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trained_folds.recipe(3)
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    recipe["estimate"]["folds"] = estimate
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    write_data(tmp_path)
    trained: list[pd.DataFrame] = []

    def refit(recipe: object, frame: pd.DataFrame, folder: Path) -> Undecided:
        folder.mkdir(parents=True)
        trained.append(frame)
        return Undecided()

    monkeypatch.setattr(cross_validate.refit, "refit", refit)
    monkeypatch.setattr(sys, "argv", ["cross_validate", "--folds", "2"])
    cross_validate.main()
    assert ("makes the estimate; these are folds of their own" in capsys.readouterr().out) != validates
    assert [("val" in set(frame["split"])) for frame in trained] == [validates] * 2
    held_out = [path for frame in trained for path in frame.loc[frame["split"] == "test", "path"]]
    assert sorted(held_out) == sorted(trained[0]["path"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_group_is_held_out_once_and_the_project_is_left_as_it_was(tmp_path: Path) -> None:
    recipe = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    recipe["prepare"]["image_size"] = SIZE
    recipe["model"]["backbone"] = "VGG16"  # few layers: quick to begin with
    recipe["features"]["views"] = recipe["train_head"]["epochs"] = recipe["fine_tune"]["epochs"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(recipe))
    split = write_data(tmp_path)

    command = [sys.executable, "-m", "pipeline.cross_validate", "--folds", "2", "--shares", "0.5", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "reports/cross_validation.csv", dtype={"image": str})
    assert sorted(table["image"]) == sorted(sha256[:12] for sha256 in split["sha256"])
    assert set(table["group"]) == set(range(1, 25))
    by_share = json.loads((tmp_path / "reports/cross_validation.json").read_text())["by_share"]
    assert [point["trained_on"] for point in by_share.values()] == [8, 16]
    for found in by_share.values():
        assert (found["images"], found["groups"], len(found["each_fold"])) == (48, 24, 2)
        assert found["balanced_accuracy"]["low"] <= found["balanced_accuracy"]["value"]
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "params.yaml",
        "data/prepared/images.npy",
        "data/prepared/split.csv",
        *(f"reports/cross_validation.{kind}" for kind in ("csv", "json", "png")),
    }
