"""benchmarks/estimate.py: what it calls session is session, and what is left out of a trial takes no part in it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import estimate
from pipeline import params
from pipeline.network import classifier
from pipeline.stage import Problem
from tests.project import ROOT

RECIPE = params.load(ROOT / "presets/all4.yaml")
BLOCK = RECIPE.prepare.block


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Fifteen blocks of each class."""
    made = [
        {"path": f"{c.key}/{number:03d}.jpg", "class": c.key, "label": i, "group": f"{c.key}-{number // BLOCK:03d}"}
        for i, c in enumerate(RECIPE.classes)
        for number in range(0, 15 * BLOCK, 4)
    ]
    return pd.DataFrame(made)


def test_variance_is_shared_out_between_class_session_and_the_rest(rows: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    groups, block = np.unique(rows["group"], return_inverse=True)
    of_class, of_block = rng.normal(0, 3, (4, 40)), rng.normal(0, 2, (len(groups), 40))
    noise = rng.normal(0, 1, (len(rows), 40))
    found = estimate.session(of_class[rows["label"]] + of_block[block] + noise, rows, RECIPE)
    shares = [found[name] for name in ("classes", "blocks_of_a_class", "within_blocks")]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert found["block_told"] > 0.95
    nothing = estimate.session(noise, rows, RECIPE)
    assert nothing["block_told"] < 2 * nothing["largest_block"]
    assert nothing["within_blocks"] > 0.9


def test_what_is_left_out_is_looked_at_once_after_the_estimate(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of: list[tuple[set[str], set[str]]] = []

    def answers(
        recipe: object, variant: object, train: list[np.ndarray], asked: list[np.ndarray], turn: int
    ) -> list[np.ndarray]:
        asked_of.append((set(rows["group"][train[0]]), set(rows["group"][asked[0]])))
        return [np.eye(4)[rows["label"].to_numpy()[asked[0]]]]

    monkeypatch.setattr(estimate, "answers", answers)
    found = estimate.trial(4, np.arange(len(rows)), rows, RECIPE)
    assert found["promised"]["value"] == found["found"]["value"] == 1
    *folds, (learnt, left) = asked_of
    assert len(folds) == estimate.FOLDS
    assert not any(left & (learns | asked) for learns, asked in folds)
    assert not any(learns & asked for learns, asked in asked_of)
    assert set().union(*(asked for _, asked in folds)) == learnt


def test_a_head_with_attention_learns_from_maps_and_another_from_their_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(recipe: object, variant: estimate.Variant, size: int) -> object:
        return classifier.build(size, 4, pooling=variant.pooling, last_layer=variant.last_layer, head=variant.head)

    monkeypatch.setattr(estimate, "network", network)
    recipe = RECIPE.model_copy(update={"prepare": RECIPE.prepare.model_copy(update={"image_size": 32})})
    labels = np.arange(64) % 4
    pixels = np.random.default_rng(0).integers(0, 60, (64, 32, 32, 3), np.uint8)
    pixels[:, :16, :16] += (60 * labels)[:, None, None, None].astype(np.uint8)
    learns, asked = np.arange(48), np.arange(48, 64)
    for pooling, shape in {"attention": (64, 8, 8, 256), "average": (64, 256)}.items():
        variant = estimate.Variant("conv2_block3_out", pooling, "linear")
        values = estimate.features(recipe, variant, pixels)
        assert values.shape == shape
        large = pixels[:2].repeat(2, axis=1).repeat(2, axis=2)  # of another size than the recipe's
        assert estimate.features(recipe, variant, large).shape[-1] == shape[-1]
        train = values[learns], labels[learns], np.ones(48, np.float32)
        answers, turned = estimate.answers(recipe, variant, train, [values[asked], values[asked[::-1]]], turn=0)
        assert (answers.argmax(1) == labels[asked]).mean() > 0.5
        assert turned == pytest.approx(answers[::-1], abs=1e-5)


def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *asked: str, weights: str = "base") -> None:
    """Asks for more of a file that is of the weights `base`; neither images nor weights are there to work on."""
    (tmp_path / "base").touch()
    (tmp_path / "estimate.json").write_text('{"weights": "base", "recipes": {}}')
    monkeypatch.setattr(estimate.training, "RESULTS", tmp_path)
    given = ["--folder", str(tmp_path), "--weights", str(tmp_path / weights)]
    monkeypatch.setattr("sys.argv", ["estimate", *asked, *given])
    estimate.main()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("conv4_block6_out atention paper", r"model\.pooling: .*'atention'"),
        ("conv4_block6_out attention papr", r"model\.head: .*'papr'"),
    ],
)
def test_a_recipe_that_does_not_exist_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, message: str
) -> None:
    with pytest.raises(Problem, match=message):
        ask(monkeypatch, tmp_path, "--recipe", "conv4_block6_out", "average", "paper", "--recipe", *recipe.split())


def test_a_recipe_is_added_to_a_file_of_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").touch()
    with pytest.raises(Problem, match=r"estimate\.json: not of other, .*; run it without --recipe"):
        ask(monkeypatch, tmp_path, "--recipe", "conv4_block6_out", "attention", "paper", weights="other")


@pytest.mark.parametrize("asked", ["--epochs 5", "--recipe conv4_block6_out average paper --epochs 0"])
def test_epochs_are_of_a_recipe_that_is_added(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ask(monkeypatch, tmp_path, *asked.split())
    assert "--epochs is a number from 1 on, and of a --recipe" in capsys.readouterr().err
