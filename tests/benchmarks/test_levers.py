"""benchmarks/levers.py: what it changes of images, and which heads are asked about which images."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import estimate, levers, stains
from pipeline import params
from pipeline.network import augment, stain
from tests.project import ROOT

# Purple discs on light ground, in two stains: what a session at the microscope changes.
SIDE = 32
RECIPE = params.load(ROOT / "presets/all4_moments.yaml")


def smears(count: int, tint: tuple[float, float, float]) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    made = []
    for _ in range(count):
        x, y, radius = rng.uniform((10, 10, 6), (22, 22, 9))
        disc = np.hypot(rows - y, columns - x) < radius
        image = np.where(disc[..., None], (110, 60, 150), (225, 200, 215)) * tint + rng.normal(0, 5, (SIDE, SIDE, 3))
        made.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(made)


ONE, OTHER = smears(12, (1.0, 1.0, 1.0)), smears(12, (1.0, 0.85, 0.75))
# A session of each stain in each of two classes.
BOTH = np.concatenate([ONE, OTHER])
ROWS = pd.DataFrame({"label": np.arange(24) % 2, "group": np.repeat(["one", "other"], 12)})
ROWS["group"] += ROWS["label"].astype(str)


def between(first: np.ndarray, second: np.ndarray) -> float:
    """How far two sets of images lie apart in their mean colours, in grey levels."""
    return float(np.abs(first.mean((0, 1, 2)) - second.mean((0, 1, 2))).max())


def changes(images: np.ndarray) -> dict[str, levers.Change]:
    return levers.changes(images, ROWS, levers.colours(images))


@pytest.mark.parametrize("name", ["Reinhard", "Macenko"])
def test_a_normalisation_brings_another_stain_to_the_images_that_it_was_fitted_on(name: str) -> None:
    change = changes(np.concatenate([ONE, ONE]))[name]
    made = change(OTHER)
    assert (made.shape, made.dtype) == (OTHER.shape, np.uint8)
    assert between(made, ONE) < 0.6 * between(OTHER, ONE)


def test_an_image_without_stain_is_left_as_it_is() -> None:
    blank = np.full((1, SIDE, SIDE, 3), 250, np.uint8)
    assert (changes(BOTH)["Macenko"](blank) == blank).all()


def test_balanced_backgrounds_are_all_of_one_white() -> None:
    made = stains.white(BOTH)
    assert np.quantile(made, 0.9, axis=(1, 2)) == pytest.approx(np.full((24, 3), stains.BACKGROUND), abs=1)
    assert between(made[:12], made[12:]) < between(ONE, OTHER) / 2


def test_a_stain_is_drawn_from_between_two_sessions_of_a_class() -> None:
    moves = stains.moves(levers.colours(BOTH), ROWS, np.random.default_rng(0))
    there = levers.colours(OTHER).mean(0)[0] - levers.colours(ONE).mean(0)[0]
    # Every image moves as far as these two sessions lie apart, and no way but to or fro.
    assert np.abs(np.abs(moves[:, 0]) - np.abs(there)).max() < 0.2 * np.abs(there).max()
    shift, log_ratio = stains.spread(levers.colours(BOTH), ROWS)
    assert shift == pytest.approx(moves[:, 0].std(0), rel=0.2)
    assert log_ratio == pytest.approx(np.log(moves[:, 1]).std(0), rel=0.2)
    assert {1, -1} == set(np.sign(moves[:, 0] @ there))
    forth = moves[moves[:, 0] @ there > 0][:1].repeat(12, axis=0)
    assert between(stains.drawn(ONE, forth), OTHER) < between(ONE, OTHER) / 4


def test_a_white_after_a_drawn_stain_is_that_stain_s_white() -> None:
    made = changes(BOTH)
    assert (made["stain drawn, 1, white"](BOTH) == stains.white(made["stain drawn, 1"](BOTH))).all()


def test_a_move_to_where_an_image_is_changes_nothing() -> None:
    still = np.tile(np.array([[0.0] * 3, [1.0] * 3]), (12, 1, 1))
    assert np.abs(stains.drawn(ONE, still).astype(int) - ONE).max() <= 1


def test_the_presets_views_are_as_many_as_training_has_and_the_same() -> None:
    assert len(levers.VIEWS) == RECIPE.features.views
    hashes = [f"{number:064x}" for number in range(24)]
    made = [levers.viewed(RECIPE, hashes, number, BOTH) for number in range(2)]
    assert (made[1][5] == augment.view(BOTH[5], RECIPE.augment, RECIPE.seed, 1, hashes[5])).all()
    ground = np.median(BOTH, (1, 2))  # whatever bar is drawn on it
    moved = [np.median(np.abs(np.median(views, (1, 2)) - ground)) for views in made]
    assert moved[0] < 1 < moved[1], "the first keeps its stain"


def test_quarters_and_symmetries_hold_what_the_image_holds() -> None:
    image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    image[:, : SIDE // 2, SIDE // 2 :] = 200  # top right
    large = levers.enlarged(image)
    assert large.shape == (1, 2 * SIDE, 2 * SIDE, 3)
    assert np.abs(large[:, ::2, ::2].astype(int) - image).mean() < 4
    means = [levers.quarter(image, number).mean() for number in range(4)]
    assert means == pytest.approx([0, 200, 0, 0], abs=12)  # bicubic reads a little of what lies beside
    turned = [levers.turned(ONE, number) for number in range(8)]
    assert len({each.tobytes() for each in turned}) == 8
    assert all((np.sort(each, axis=None) == np.sort(ONE, axis=None)).all() for each in turned)


def test_the_spread_that_augmentation_draws_is_the_one_that_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks/results/levers.json").read_text())["spread"]
    assert pytest.approx(measured["shift"], rel=0.05) == stain.SHIFT
    assert pytest.approx(measured["log_ratio"], rel=0.05) == stain.LOG_RATIO


def test_levers_that_are_asked_again_leave_the_others_in_the_file_unless_it_is_of_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levers.training, "RESULTS", tmp_path)
    for weights, layer, result, kept in (
        ("base", "one", {"a": 1, "b": 1}, {"one": {"a": 1, "b": 1}}),
        ("base", "one", {"b": 2}, {"one": {"a": 1, "b": 2}}),
        ("base", "two", {"b": 3}, {"one": {"a": 1, "b": 2}, "two": {"b": 3}}),
        ("other", "two", {"b": 4}, {"two": {"b": 4}}),
    ):
        levers.write(weights, {}, layer, result)
        assert json.loads((tmp_path / "levers.json").read_text())["layers"] == kept


@pytest.mark.parametrize(("of", "column"), [("class", "label"), ("session", "group"), ("image", None)])
def test_what_is_to_have_the_same_weight_has_it(of: str, column: str | None) -> None:
    rows = pd.DataFrame({"label": [0, 0, 0, 0, 0, 0, 1, 1], "group": list("aaaabbcd")})
    weights = pd.Series(levers.loss_weights(of, rows))
    assert weights.mean() == pytest.approx(1)
    if column is None:
        assert (weights == 1).all()
        return
    assert weights.groupby(rows["label"]).sum().to_numpy() == pytest.approx([4, 4])
    if of == "session":
        assert weights.groupby(rows["group"]).sum().to_numpy() == pytest.approx([2, 2, 2, 2])


@pytest.fixture
def rows() -> pd.DataFrame:
    """Fifteen blocks of each class."""
    made = [
        {"path": f"{c.key}/{number:03d}.jpg", "class": c.key, "label": i, "group": f"{c.key}-{number // 37:03d}"}
        for i, c in enumerate(RECIPE.classes)
        for number in range(0, 15 * RECIPE.prepare.block, 4)
    ]
    return pd.DataFrame(made)


def test_a_lever_that_helps_is_seen_and_is_asked_about_no_group_that_it_learnt(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that knows nothing but the place of an image, and says what the features of its own copy tell."""
    names, steps = rows["group"].to_numpy(), []

    def answers(
        recipe: params.Params, variant: object, train: list[np.ndarray], asked: list[np.ndarray], turn: int
    ) -> list[np.ndarray]:
        values, labels, weights = train
        places = values[:, 0].astype(int)
        assert (rows["label"].to_numpy()[places] == labels).all()
        assert weights.mean() == pytest.approx(1)
        assert not set(names[places]) & {name for each in asked for name in names[each[:, 0].astype(int)]}
        steps.append(len(labels) * recipe.train_head.epochs)
        return [np.eye(4)[each[:, 1].astype(int)] for each in asked]

    monkeypatch.setattr(estimate, "answers", answers)
    place, label = np.arange(len(rows)), rows["label"].to_numpy()
    half = np.where(place % 2, label, (label + 1) % 4)
    copies = {"plain": half, "Reinhard": label, levers.BLIND + "plain": 0 * label, "white": (label + 1) % 4}
    values = {name: np.stack([place, each], axis=1) for name, each in copies.items()}
    chosen = {levers.BASELINE: levers.Lever(), "better": levers.Lever(("plain", "Reinhard"), ("Reinhard",))}
    found = levers.measured(chosen, values, rows, RECIPE)
    assert list(found) == [levers.BASELINE, levers.TOGETHER, "better"]
    assert found[levers.BASELINE]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found[levers.BASELINE]["cells_masked"]["value"] == pytest.approx(0.25)
    assert found["better"]["balanced_accuracy"]["value"] == 1
    assert found["better"]["difference"]["value"] == pytest.approx(0.5, abs=0.01)
    assert found["better"]["cells_masked"] is None
    assert steps[:15] == steps[15:]  # with twice the copies as many steps
    text = levers.table(found)
    assert "| the recipe | 0.5" in text
    assert "| better | 1.000 [1.000, 1.000] | +0.5" in text
