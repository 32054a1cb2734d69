"""The drift reference where each image was answered by one of several folds' models, and another model serves."""

import numpy as np
import pytest

from leukdetect import drift
from leukdetect.contract import Reference
from leukdetect.drift import Signals
from pipeline.model_file import drift_reference
from pipeline.model_file.drift_reference import Folds

K, GROUPS, EACH, CLASSES, D, WINDOW = 3, 300, 2, 4, 16, 200
SEEN, UNSEEN = (2.0, 0.2), (0.6, 0.7)  # weights of class and group in features of a model that learnt from it, or not
MEANS = np.random.default_rng(5).normal(size=(CLASSES, D))


class Network:
    """Features [n, D] of groups' images; another training's have other axes, and so nothing in common."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.axes = np.linalg.qr(rng.normal(size=(D, D)))[0]

    def __call__(self, groups: np.ndarray, own: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
        """Of images of `groups` [n], whose own look is `own` [n, D]."""
        places = np.stack([np.random.default_rng([9, group]).normal(size=D) for group in groups])
        return np.asarray((weights[0] * MEANS[groups % CLASSES] + weights[1] * places + 0.5 * own) @ self.axes)


def seen_by(network: Network, groups: np.ndarray, weights: tuple[float, float], rng: np.random.Generator) -> Signals:
    scalars = np.stack([np.random.default_rng([7, group]).normal(size=6) for group in groups])
    scalars += rng.normal(size=scalars.shape)
    return Signals(scalars, groups % CLASSES, network(groups, rng.normal(size=(len(groups), D)), weights))


def share_of_alarms(reference: Reference, network: Network, windows: int = 50) -> float:
    """In any signal, in windows of groups that no model has seen."""
    rng = np.random.default_rng(2)
    found = 0
    for number in range(windows):
        groups = np.repeat(10**4 + 100 * number + np.arange(100), EACH)
        compared = drift.compare(drift.encode(seen_by(network, groups, UNSEEN, rng), reference), reference)
        assert compared
        found += bool(compared.alarms())
    return found / windows


def test_windows_of_unseen_groups_alarm_as_seldom_as_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_reference, "SIZES", (WINDOW,))
    monkeypatch.setattr(drift_reference, "DRAWS", K * drift_reference.BATCH)
    rng = np.random.default_rng(1)
    serves, networks = Network(rng), [Network(rng) for _ in range(K)]
    groups = np.repeat(np.arange(GROUPS), EACH)
    of = np.random.default_rng(4).permutation(np.arange(GROUPS) % K)[groups]
    names = [str(group) for group in groups]

    asked = seen_by(serves, groups, UNSEEN, rng)  # all but the embedding, which is each fold's own
    for one, network in enumerate(networks):
        asked.embedding[of == one] = seen_by(network, groups[of == one], UNSEEN, rng).embedding
    seen = [seen_by(network, groups[of != one], SEEN, rng).embedding for one, network in enumerate(networks)]
    learnt = seen_by(serves, groups, SEEN, rng)

    out_of_fold = drift_reference.fit(asked, names, CLASSES, 0, folds=Folds(of, seen, learnt.embedding))
    assert share_of_alarms(out_of_fold, serves, 300) <= 10 * drift_reference.FALSE_ALARMS  # three windows
    assert share_of_alarms(out_of_fold, Network(rng)) > 0.9  # it is not deaf
    in_sample = drift_reference.fit(learnt, names, CLASSES, 0)
    assert share_of_alarms(in_sample, serves) > 0.2
    mixed = drift_reference.fit(asked, names, CLASSES, 0)  # features of several models as if they were one's
    assert share_of_alarms(mixed, serves) > 0.9


def test_a_windows_images_were_answered_by_one_model() -> None:
    """Each fold's windows are held against what that fold's model learnt from."""
    rng = np.random.default_rng(0)
    rows = np.abs(rng.normal(size=(40, len(drift.SCALARS) * drift.CELLS + CLASSES + 2))).astype(np.float32)
    of, groups = np.repeat([0, 1], 20), [str(i // 4) for i in range(40)]
    rows[of == 1, -2:] += 1000
    means = [rows[of == one, -2:].mean(axis=0) for one in (0, 1)]
    found = drift_reference.thresholds(rows, groups, CLASSES, 10, rng, of, means)
    assert found["embedding"]["mmd"] < 5
    swapped = drift_reference.thresholds(rows, groups, CLASSES, 10, rng, of, means[::-1])
    assert swapped["embedding"]["mmd"] > 1000
