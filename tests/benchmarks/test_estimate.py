"""benchmarks/estimate.py: what it calls session is session, and what is left out of a trial takes no part in it."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import estimate
from pipeline import params
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
        recipe: object,
        layer: str,
        values: np.ndarray,
        labels: np.ndarray,
        learns: np.ndarray,
        asked: np.ndarray,
        *_: int,
    ) -> np.ndarray:
        asked_of.append((set(rows["group"][learns]), set(rows["group"][asked])))
        return labels[asked]

    monkeypatch.setattr(estimate, "answers", answers)
    found = estimate.trial(4, np.zeros((len(rows), 2)), rows, RECIPE)
    assert found["promised"]["value"] == found["found"]["value"] == 1
    *folds, (learnt, left) = asked_of
    assert len(folds) == estimate.FOLDS
    assert not any(left & (learns | asked) for learns, asked in folds)
    assert not any(learns & asked for learns, asked in asked_of)
    assert set().union(*(asked for _, asked in folds)) == learnt
