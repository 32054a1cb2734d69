"""Answers out of fold: in the images' order, and with limits that a fold's own answers do not move."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss, recall_score

from pipeline import params
from pipeline.data import folds
from pipeline.evaluation import explanations, held_out, metrics
from pipeline.evaluation.held_out import HeldOut
from pipeline.model_file import onnx_model, out_of_fold
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.stage import Problem
from tests import tiny_model, trained_folds

N, K = 160, 3
RNG = np.random.default_rng(3)
LABELS = np.arange(N) % 4
FOLD = RNG.permutation(np.repeat(np.arange(K), -(-N // K))[:N])  # neither sorted nor of equal sizes
COLOURS = RNG.integers(5, 120, (N, 3))  # dark, where the biases matter
SPLIT = pd.DataFrame(
    {
        "path": [f"{i}.png" for i in range(N)],
        "class": [tiny_model.CLASSES[label].key for label in LABELS],
        "label": LABELS,
        "sha256": [f"{i:064x}" for i in range(N)],
        "patient": "",
        "group": [f"{label}-{i // 8}" for i, label in enumerate(LABELS)],
        "split": "train",
    }
)
PIXELS = np.broadcast_to(COLOURS[:, None, None, :], (N, tiny_model.SIZE, tiny_model.SIZE, 3)).astype(np.uint8)
BIASES = (8.0, 11.0, 5.0)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> params.Params:
    """Three trained folds, whose models differ, and the files that learnt from all."""
    monkeypatch.chdir(tmp_path)
    trained_folds.recipe(K, seeds=(88, 89))
    trained_folds.write(SPLIT, PIXELS, FOLD, BIASES)
    trained_folds.write(SPLIT, PIXELS, FOLD, BIASES[::-1], seed=89)
    tiny_model.write(FP32)
    tiny_model.write(INT8, precision="int8")
    return params.load()


def measure(recipe: params.Params) -> HeldOut:
    return held_out.measure(recipe, onnx_model.load(FP32), onnx_model.load(INT8), PIXELS, SPLIT)


def change(one: int, alter: Callable[[dict[str, np.ndarray]], None], precision: str = "fp32") -> None:
    """Alters what a fold's model said."""
    path = folds.folder(one, 88) / f"{precision}.npz"
    arrays = dict(np.load(path))
    alter(arrays)
    np.savez(path, allow_pickle=False, **arrays)


def asked(one: int, image: int, output: str) -> np.ndarray:
    """One image's answer by a fold's model, asked for it alone."""
    session = onnxruntime.InferenceSession(folds.folder(one, 88) / "fp32.onnx")
    return np.asarray(session.run([output], {"image": PIXELS[image : image + 1]})[0][0])


def test_each_images_answers_are_those_of_the_model_that_did_not_see_it(recipe: params.Params) -> None:
    found = measure(recipe)
    ours = found.fp32.answers
    for image in range(0, N, 7):
        one = int(FOLD[image])
        plain = asked(one, image, "probabilities").astype(np.float64)
        temperature = np.broadcast_to(found.fp32.temperature, (N, 1))[image]
        np.testing.assert_allclose(ours.probabilities[image], softmax(np.log(plain) / temperature), atol=1e-5)
        np.testing.assert_allclose(ours.embedding[image], asked(one, image, "embedding"), rtol=1e-6)
        np.testing.assert_allclose(ours.cam[image], asked(one, image, "cam"), rtol=1e-5, atol=1e-4)
    assert np.array_equal(found.fp32.predict(PIXELS.__getitem__), ours.predicted)
    assert found.rows.index.tolist() == SPLIT.index.tolist()
    for (model, mine), one in zip(found.fp32.models(), range(K), strict=True):
        assert np.array_equal(mine, one == FOLD)
        assert model.path == folds.folder(one, 88) / "fp32.onnx"


def test_a_folds_limits_are_fitted_to_the_other_folds_answers(recipe: params.Params) -> None:
    """By other means: a search over a grid, and quantiles of what the other folds said."""
    found = measure(recipe)
    said, settings, ours = out_of_fold.read(recipe, SPLIT, "fp32"), recipe.calibrate, found.fp32.answers
    for one in range(K):
        mine, others = one == FOLD, one != FOLD
        grid = np.geomspace(0.05, 20, 400)
        logits, labels = np.log(np.maximum(said.outputs["probabilities"].astype(float), 1e-30)), LABELS[others]
        best = grid[np.argmin([log_loss(labels, softmax(logits[others] / t, axis=1)) for t in grid])]
        (temperature,) = np.unique(np.asarray(found.fp32.temperature)[mine])
        assert temperature == pytest.approx(best, rel=0.016)  # a step

        theirs = softmax(logits[others] / temperature, axis=1)
        malignant = np.sort(theirs[labels > 0, 1:].sum(axis=1))
        reached = [t for t in malignant if (malignant >= t).mean() >= settings.target_sensitivity]
        point = min(max(reached), 0.5)
        assert ours.malignant is not None
        assert ours.p_malignant is not None
        assert np.array_equal(ours.malignant[mine], ours.p_malignant[mine] >= point)
        low = np.array(["low_confidence" in reasons for reasons in ours.reasons])[mine]
        limit = np.quantile(theirs.max(axis=1), settings.refer_share)
        clear = np.abs(ours.confidence[mine] - limit) > 1e-6
        assert np.array_equal(low[clear], (ours.confidence[mine] < limit)[clear])
        scale = np.quantile(said.outputs["unlikeness"][others], settings.unlikeness_quantile)
        np.testing.assert_allclose(ours.unlikeness[mine], said.outputs["unlikeness"][mine] / scale, rtol=1e-5)
        for label in range(4):
            (threshold,) = np.unique(found.fp32.set_thresholds[mine, label])
            own = theirs[labels == label, label]
            assert (own < threshold).mean() <= settings.set_error < (own <= threshold + 2e-6).mean() + 1 / len(own)


def test_a_folds_own_answers_do_not_move_its_limits(recipe: params.Params) -> None:
    def limits(of: HeldOut, mine: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(of.fp32.temperature)[mine], of.fp32.set_thresholds[mine]]

    def otherwise(arrays: dict[str, np.ndarray]) -> None:
        arrays["probabilities"] = np.random.default_rng(0).dirichlet(np.ones(4), len(arrays["rows"])).astype(np.float32)
        arrays["unlikeness"] *= 3

    before = measure(recipe)
    change(0, otherwise)
    after = measure(recipe)
    for old, new in zip(limits(before, FOLD == 0), limits(after, FOLD == 0), strict=True):
        assert np.array_equal(old, new)
    first, other = FOLD == 0, FOLD == 1
    np.testing.assert_allclose(
        after.fp32.answers.unlikeness[first], 3 * before.fp32.answers.unlikeness[first], rtol=1e-6
    )
    for old, new in zip(limits(before, other), limits(after, other), strict=True):
        assert not np.array_equal(old, new)
    assert (after.fp32.answers.unlikeness[other] < before.fp32.answers.unlikeness[other]).all()


def test_the_maps_are_tested_with_one_model_from_its_first_answer_to_its_last(recipe: params.Params) -> None:
    held = measure(recipe)
    model, mine = next(held.fp32.models())
    found = held_out.explained(held, 0, None)
    assert found.deletion
    assert found.insertion
    said = model.predict(PIXELS[mine], ("probabilities", "cam"))
    maps = said["cam"][np.arange(mine.sum()), said["probabilities"].argmax(1)]
    plain = said["probabilities"].max(axis=1)[(maps > 0).any(axis=(1, 2))]
    assert found.altered_images == len(plain) <= explanations.MOST
    assert found.deletion.curves.map[0] == pytest.approx(plain.mean(), abs=1e-4)
    assert found.insertion.curves.map[-1] == pytest.approx(plain.mean(), abs=1e-4)


def test_the_spread_is_of_each_fold_and_each_seed(recipe: params.Params) -> None:
    spread = measure(recipe).out_of_fold
    assert spread is not None
    assert (spread.folds, spread.seeds) == (3, [88, 89])
    assert spread.trained_on == pytest.approx(N * (1 - 1 / K))
    for seed, over_all, each in zip((88, 89), spread.each_seed, spread.each_fold, strict=True):
        said = np.empty(N, int)
        for one, value in enumerate(each):
            mine, path = one == FOLD, folds.folder(one, seed) / "fp32.onnx"
            said[mine] = onnxruntime.InferenceSession(path).run(["probabilities"], {"image": PIXELS[mine]})[0].argmax(1)
            assert value == pytest.approx(recall_score(LABELS[mine], said[mine], average="macro"))
        assert over_all == pytest.approx(recall_score(LABELS, said, average="macro"))


def test_colour_is_learnt_from_the_images_that_a_folds_model_learnt_from(recipe: params.Params) -> None:
    """Each image says which it is, and its class: only who has seen it could answer that."""
    names = np.arange(N, dtype=float)[:, None]
    found = measure(recipe)
    answered = found.baseline(lambda images: np.hstack([names, 100 * (LABELS == 0)[:, None]]))
    assert metrics.balanced_accuracy(LABELS[:, None].ravel() == 0, answered == 0, np.ones((1, N)))[0] == 1
    assert (answered == LABELS)[LABELS > 0].mean() < 0.6


def test_answers_that_are_missing_or_of_other_images_are_refused(recipe: params.Params) -> None:
    def moved(arrays: dict[str, np.ndarray]) -> None:
        arrays["rows"] = arrays["rows"] + 1

    change(1, moved, "int8")
    assert out_of_fold.read(recipe, SPLIT, "fp32").fold.tolist() == FOLD.tolist()
    with pytest.raises(Problem, match=r"data/folds/88-1/int8.npz is of other images; `dvc repro` makes it anew"):
        measure(recipe)
    (folds.folder(2, 89) / "fp32.npz").unlink()
    with pytest.raises(Problem, match=r"89-2/fp32.npz is missing; `dvc repro fold@2-89` makes it"):
        out_of_fold.read(recipe, SPLIT, "fp32", 89)
    others = SPLIT.assign(sha256=SPLIT["sha256"][::-1].to_numpy())
    with pytest.raises(Problem, match=r"folds.csv is of other images than data/prepared"):
        out_of_fold.read(recipe, others, "fp32")
