"""The drift reference of a model file: how its answers to the validation images are spread, and how far a window of
images from the same source strays from that by chance.

Images of a patient or session are alike, so a window is drawn as it comes in practice: whole groups, one after the
other. And the reference is itself a sample of few groups, so it is drawn anew for every window too; else the thresholds
would hold for these very patients alone.
"""

from collections.abc import Sequence

import numpy as np

from leukdetect import contract, drift
from leukdetect.drift import Signals

SIZES = (50, 100, 200)  # images; under 50 chance rules, beyond 200 a change is seen late
FALSE_ALARMS = 0.001  # of windows, whatever the number of signals: one in 200,000 images at full windows
DRAWS = 20_000  # windows; 20 of them are beyond the thresholds
BATCH = 2_000  # windows at a time, so that memory does not grow with the validation split


def signals(pixels: np.ndarray, answers: dict[str, np.ndarray]) -> Signals:
    """What the server would measure of images uint8 [n, S, S, 3] and the graph's `OBSERVED` answers to them."""
    return drift.signals([drift.looks(image) for image in pixels], **answers)


def fit(found: Signals, groups: Sequence[str], classes: int, seed: int) -> contract.Reference:
    """The reference of n validation images, each of a patient or session, `groups` [n]. The seed draws the windows."""
    quantiles = np.quantile(found.scalars, np.linspace(0, 1, contract.QUANTILES), axis=0).T
    # As JSON will hold them, so that server and pipeline put an image into the same cell.
    edges = np.array([[_short(value) for value in row] for row in quantiles])
    bandwidth = _short(_median_distance(found.embedding))
    rows = drift.Encoder(edges, classes, bandwidth)(found)
    parts = drift.parts(rows.mean(axis=0, dtype=np.float64), classes)
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
        windows=[
            contract.Window(images=size, thresholds=thresholds(rows, groups, classes, size, rng)) for size in SIZES
        ],
    )


def thresholds(
    rows: np.ndarray, groups: Sequence[str], classes: int, size: int, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """What all tests together exceed in FALSE_ALARMS of the windows of `size` images of the same source.

    One level for every test, lowered until the share of windows with any alarm is right (the single-step minP of
    Westfall and Young 1993): the tests hang together, so dividing by their number would cost power.
    """
    names = np.asarray(groups)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(groups)]
    inside = np.zeros((len(members), len(rows)), np.float32)
    for group, mine in enumerate(members):
        inside[group, mine] = 1

    drawn: list[np.ndarray] = []
    for start in range(0, DRAWS, BATCH):
        count = min(BATCH, DRAWS - start)
        windows = _windows(members, inside, size, count, rng) / np.float32(size)
        references = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), count) @ inside
        references /= references.sum(axis=1, keepdims=True)
        found = drift.statistics(windows @ rows, references @ rows, classes)
        drawn.append(np.stack([found[test] for test in drift.TESTS], axis=1))
    values = np.concatenate(drawn)  # [DRAWS, tests]

    ordered = np.sort(values, axis=0)
    beyond = [DRAWS - np.searchsorted(each, mine, side="left") for each, mine in zip(ordered.T, values.T, strict=True)]
    rarest = np.sort(np.min(beyond, axis=0))  # of each window, how many windows its most unusual test leaves beyond
    allowed = int(rarest[int(FALSE_ALARMS * DRAWS)]) - 1
    limits: dict[str, dict[str, float]] = {}
    for (signal, test), each in zip(drift.TESTS, ordered.T, strict=True):
        limits.setdefault(signal, {})[test] = _short(each[DRAWS - 1 - allowed])
    return limits


def _windows(
    members: list[np.ndarray], inside: np.ndarray, size: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """How often each image is in each window, [count, n]: group after group, the last one cut to fit."""
    lengths = np.array([len(mine) for mine in members])
    drawn = rng.integers(len(members), size=(count, size // lengths.min() + 1))
    ends = lengths[drawn].cumsum(axis=1)
    last = (ends < size).sum(axis=1)  # the place of the group that is cut
    whole = np.arange(drawn.shape[1]) < last[:, None]
    times = np.zeros((count, len(members)), np.float32)
    np.add.at(times, (np.nonzero(whole)[0], drawn[whole]), 1)
    windows: np.ndarray = times @ inside
    for window, place in enumerate(last):
        group = drawn[window, place]
        windows[window, members[group][: size - ends[window, place] + lengths[group]]] += 1
    return windows


def _median_distance(embedding: np.ndarray) -> float:
    """Between embeddings [n, D] on the unit sphere: the usual width of a kernel (Gretton et al. 2012)."""
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
    unit = unit[:: -(-len(unit) // 1000)]  # a thousand will do
    products = (unit @ unit.T)[np.triu_indices(len(unit), k=1)]
    return float(np.sqrt(np.maximum(np.median(2 - 2 * products), 1e-6)))


def _short(value: float) -> float:
    """Six digits: the file carries this as text."""
    return float(f"{value:.6g}")
