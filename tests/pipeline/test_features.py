"""The views: the same whether the stage was interrupted or not, and of the size that was asked for."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import features, params, stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared data of 40 random images of 32 px, and a recipe of three views."""
    recipe = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    recipe["prepare"]["image_size"] = 32
    recipe["features"]["views"] = 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    Path("data/prepared").mkdir(parents=True)
    np.save("data/prepared/images.npy", np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)).astype(np.uint8))
    keys = [c["key"] for c in recipe["classes"]]
    rows = [
        (f"{keys[i % 4]}/{i}.jpg", keys[i % 4], i % 4, f"{i:064x}", "", f"g{i}", "train" if i < 40 else "val")
        for i in range(50)
    ]
    columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
    pd.DataFrame(rows, columns=columns).to_csv("data/prepared/split.csv", index=False)
    return tmp_path


def test_an_interrupted_stage_goes_on_after_its_last_view_with_the_same_result(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features.main()
    straight = [np.array(array) for array in features.read()]
    assert straight[0].shape == (3, 40, 32, 32, 3)
    assert straight[1].shape == (10, 32, 32, 3)
    assert not any(stage.STATE.glob("features/*"))

    def one_and_ctrl_c(items: Iterable[int], *arguments: object, **options: object) -> Iterator[int]:
        yield next(iter(items))
        raise KeyboardInterrupt

    before = (features.FEATURES / "train.npy").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(stage, "progress", one_and_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            features.main()
    assert (features.FEATURES / "train.npy").stat().st_mtime_ns == before  # what stood before still stands
    features.main()
    assert "going on after view 1 of 3" in capsys.readouterr().out
    for a, b in zip(straight, features.read(), strict=True):
        assert np.array_equal(a, b)


def test_another_recipe_does_not_go_on_from_what_was_left(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = params.load()
    left = features._state(recipe)
    (left / "views_done").write_text("2")
    other = features._state(recipe.model_copy(update={"seed": recipe.seed + 1}))
    assert other != left
    assert not left.exists()
    assert not list(other.iterdir())
