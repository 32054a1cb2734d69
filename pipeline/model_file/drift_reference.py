"""The drift reference of a model file: the distribution of its answers to the validation images, and how far a window
of images from the same source strays from it by chance.

Images of a patient or session are alike, so a window is drawn as in practice: whole groups, one after the other. The
reference is itself a sample of few groups, so it is drawn again for every window too; otherwise the thresholds would
hold for these patients only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leukdetect import contract, drift
from leukdetect.drift import Signals

SIZES = (50, 100, 200)  # images; fewer than 50 vary too much by chance, more than 200 show a change late
FALSE_ALARMS = 0.001  # of windows, whatever the number of signals: one in 200,000 images at full windows
DRAWS = 20_000  # windows; 20 of them exceed the thresholds
BATCH = 2_000  # windows at a time, so that memory does not grow with the validation split


class Folds(NamedTuple):
    """Where n images were answered by several folds' models, whose embeddings have nothing in common."""

    of: np.ndarray  # int [n], 0…: whose model answered
    seen: Sequence[np.ndarray]  # embeddings [m, D] by each fold's model of images that it learnt from
    own: np.ndarray  # [m, D], by this model, of images that it learnt from


def signals(pixels: np.ndarray, answers: dict[str, np.ndarray]) -> Signals:
    """What the server would measure of images uint8 [n, S, S, 3] and the graph's `OBSERVED` answers to them."""
    return drift.signals([drift.looks(image) for image in pixels], **answers)


def fit(
    found: Signals,
    groups: Sequence[str],
    classes: int,
    seed: int,
    sides: np.ndarray | None = None,
    folds: Folds | None = None,
) -> contract.Reference:
    """The reference of n validation images, each of a patient or session, `groups` [n]; windows are drawn by `seed`.

    With folds, the reference of the embedding is this model's of images that it learnt from. How far other images lie
    from such by chance, the folds' models tell: each has held-out images, and others that it learnt from.

    `sides` [n]: √(width × height) of each file's pixels.
    """
    quantiles = np.quantile(found.scalars, np.linspace(0, 1, contract.QUANTILES), axis=0).T
    # As JSON will hold them, so that server and pipeline put an image into the same cell.
    edges = np.array([[_short(value) for value in row] for row in quantiles])
    bandwidth = _short(_median_distance(folds.own if folds else found.embedding))
    rows = drift.encode_by(found, edges, classes, bandwidth)
    parts = drift.parts(rows.mean(axis=0, dtype=np.float64), classes)
    whose, means = None, None
    if folds:
        parts["embedding"], *means = (
            drift.features(each, bandwidth).mean(axis=0, dtype=np.float64) for each in (folds.own, *folds.seen)
        )
        whose = folds.of
    rng = np.random.default_rng(seed)
    return contract.Reference(
        images=len(rows),
        groups=len(set(groups)),
        false_alarms=FALSE_ALARMS,
        scalars={
            signal: contract.Scalar(quantiles=mine.tolist(), shares=[_short(share) for share in parts[signal]])
            for signal, mine in zip(drift.SCALARS, edges, strict=True)
        },
        class_shares=[_short(share) for share in parts["class"]],
        bandwidth=bandwidth,
        embedding=[_short(value) for value in parts["embedding"]],
        sides=None if sides is None else [_short(q) for q in np.quantile(sides, np.linspace(0, 1, contract.QUANTILES))],
        windows=[
            contract.Window(images=size, thresholds=thresholds(rows, groups, classes, size, rng, whose, means))
            for size in SIZES
        ],
    )


def thresholds(
    rows: np.ndarray,
    groups: Sequence[str],
    classes: int,
    size: int,
    rng: np.random.Generator,
    whose: np.ndarray | None = None,
    means: Sequence[np.ndarray] | None = None,
) -> dict[str, dict[str, float]]:
    """The values that any test exceeds in FALSE_ALARMS of the windows of `size` images from the same source.

    A window is drawn among the images that one model answered, `whose` [n]; `means` are the features of the embedding
    that each model's windows are held against. Without them one model answered all, and its own answers' are.

    All tests have one level, lowered until the share of windows with any alarm is right (the single-step minP of
    Westfall and Young 1993): the tests are correlated, so dividing the level by their number would cost power.
    """
    inside = (np.asarray(groups) == np.array(list(dict.fromkeys(groups)))[:, None]).astype(np.float32)  # [groups, n]
    whose = np.zeros(len(rows), int) if whose is None else whose
    turns = [[np.flatnonzero(group & (whose == one)) for group in inside > 0] for one in range(whose.max() + 1)]
    answered = [[member for member in members if len(member)] for members in turns]

    drawn: list[np.ndarray] = []
    for start in range(0, DRAWS, BATCH):
        count, one = min(BATCH, DRAWS - start), start // BATCH % len(answered)
        windows = _windows(answered[one], len(rows), size, count, rng) / np.float32(size)
        references = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), count) @ inside
        references /= references.sum(axis=1, keepdims=True)
        expected = references @ rows
        if means:
            expected[:, -len(means[one]) :] = means[one]
        found = drift.statistics(windows @ rows, expected, classes)
        drawn.append(np.stack([found[test] for test in drift.TESTS], axis=1))
    values = np.concatenate(drawn)  # [DRAWS, tests]

    ordered = np.sort(values, axis=0)
    beyond = [DRAWS - np.searchsorted(each, mine, side="left") for each, mine in zip(ordered.T, values.T, strict=True)]
    rarest = np.sort(np.min(beyond, axis=0))  # windows at least as extreme as each window's most unusual test
    allowed = int(rarest[int(FALSE_ALARMS * DRAWS)]) - 1
    limits: dict[str, dict[str, float]] = {}
    for (signal, test), each in zip(drift.TESTS, ordered.T, strict=True):
        limits.setdefault(signal, {})[test] = _short(each[DRAWS - 1 - allowed])
    return limits


def _windows(members: list[np.ndarray], n: int, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of the n images is in each window, [count, n]: group after group, the last one cut to fit."""
    drawn = rng.integers(len(members), size=(count, size // min(map(len, members)) + 1))
    windows = [np.concatenate([members[group] for group in groups])[:size] for groups in drawn]
    return np.array([np.bincount(window, minlength=n) for window in windows], np.float32)


def _median_distance(embedding: np.ndarray) -> float:
    """Between embeddings [n, D] on the unit sphere: the usual width of a kernel (Gretton et al. 2012)."""
    unit = drift.unit_length(embedding)
    unit = unit[:: -(-len(unit) // 1000)]  # a thousand are enough
    products = (unit @ unit.T)[np.triu_indices(len(unit), k=1)]
    return float(np.sqrt(np.maximum(np.median(2 - 2 * products), 1e-6)))


def _short(value: float) -> float:
    """Rounded to six digits, since the file holds it as text."""
    return float(f"{value:.6g}")
