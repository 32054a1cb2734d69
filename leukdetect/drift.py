"""Whether images are still like those that the model was validated on: what is measured, and how windows are compared.

An image becomes one row of numbers whose mean over a window holds all that the tests need: which cell of the
reference each scalar falls into, which class was predicted, and random features of its embedding. So a window is
a mean, the reference is a mean, and thousands of bootstrapped windows are one matrix product
(`pipeline.model_file.drift_reference`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from leukdetect import images
from leukdetect.contract import QUANTILES, Reference

SCALARS = ("confidence", "unlikeness", "brightness", "saturation", "sharpness", "stain_hue")
TESTS = (
    ("class", "psi"),
    ("class", "excess"),
    *((signal, test) for signal in SCALARS for test in ("psi", "ks")),
    ("embedding", "mmd"),
)
MEANING = {
    "class": "The predicted classes come in other shares: other patients are sent, or the model errs in one direction.",
    "confidence": "The model is surer, or less sure, of its answers than it was on the validation images.",
    "unlikeness": "The distance from the training images: other cells, another stain, another camera, or no smears.",
    "brightness": "The lamp, the exposure or the thickness of the smear.",
    "saturation": "How strong the colours are: the stain's strength, the camera's settings, or grey images.",
    "sharpness": "Focus, magnification, the camera's sharpening, or JPEG compressed harder than before.",
    "stain_hue": "The stain's colour: another stain, batch or pH, another scanner or white balance.",
    "embedding": "What the model sees in the images, all taken together; the least specific of the signals.",
}

SIDE = 32  # colour is measured on about SIDE × SIDE pixels; averages need no more
STAINED = 0.15  # mean optical density above which a pixel counts as stained
FEATURES = 128  # random frequencies; their error on MMD² is about 1/√128 of its largest value
SEED = 4
FLOOR = 0.01  # smallest share in PSI, whose logarithm needs one above 0; a smaller floor lets a single patient decide
CELLS = QUANTILES + 1  # below the reference's lowest, between its quantiles, above its highest
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # optical density of each channel value
_DECILES = np.r_[0, np.arange(3, CELLS - 2, 2)]  # the first cell of each of PSI's ten bins


@dataclass(frozen=True, eq=False)
class Signals:
    """What is measured of n images."""

    scalars: np.ndarray  # [n, 6], in the order of SCALARS
    classes: np.ndarray  # int [n], the predicted ones
    embedding: np.ndarray  # [n, D]


def signals(looks: ArrayLike, probabilities: np.ndarray, unlikeness: np.ndarray, embedding: np.ndarray) -> Signals:
    """Puts together the looks of n images, [n, 4], and the model's answers to them, [n, C], [n] and [n, D]."""
    scalars = np.column_stack([probabilities.max(axis=1), unlikeness, looks])
    return Signals(scalars, probabilities.argmax(axis=1), embedding)


def looks(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Brightness, saturation, sharpness and stain hue of uint8 [S, S, 3]."""
    (saturation,), (hue,) = colour(sample(pixels)[None])
    brightness, sharpness = images.quality(pixels)
    return brightness, float(saturation), sharpness, float(hue)


def encode(signals: Signals, reference: Reference) -> np.ndarray:
    """Images as rows like those that the reference was made of; see `encode_by`."""
    edges = np.array([reference.scalars[signal].quantiles for signal in SCALARS])
    return encode_by(signals, edges, len(reference.class_shares), reference.bandwidth)


def encode_by(signals: Signals, edges: np.ndarray, classes: int, bandwidth: float) -> np.ndarray:
    """Float32 [n, 6 × 22 + C + 256]: one-hot cells of each scalar, one-hot class, features of the embedding.

    Args:
        edges: the quantiles between which the cells lie, [6, 21].
        classes: C.
        bandwidth: of the kernel on embeddings.
    """
    cells = [
        np.eye(CELLS, dtype=np.float32)[np.searchsorted(quantiles, values, side="right")]
        for quantiles, values in zip(edges, signals.scalars.T, strict=True)
    ]
    predicted = np.eye(classes, dtype=np.float32)[signals.classes]
    return np.concatenate([*cells, predicted, features(signals.embedding, bandwidth)], axis=1)


def mean(reference: Reference) -> np.ndarray:
    """The mean of the reference's rows: float64 [K]."""
    shares = [reference.scalars[signal].shares for signal in SCALARS]
    return np.concatenate([*shares, reference.class_shares, reference.embedding])


@dataclass(frozen=True, eq=False)
class Comparison:
    """A window of images beside the reference."""

    images: int
    tests: dict[str, dict[str, tuple[float, float]]]  # by signal and test: the statistic, and what it may not exceed
    shares: dict[str, np.ndarray]  # by signal: of the window, in the reference's cells or in classes

    def alarm(self, signal: str) -> bool:
        """Whether a statistic of this signal is beyond its threshold."""
        return any(statistic > threshold for statistic, threshold in self.tests[signal].values())

    def alarms(self) -> list[str]:
        """The signals that raise an alarm."""
        return [signal for signal in MEANING if self.alarm(signal)]


def compare(rows: Sequence[np.ndarray] | np.ndarray, reference: Reference) -> Comparison | None:
    """Holds the last of the rows of `encode` against the reference: as many as the largest window that is full.

    Returns:
        None below the smallest window. A file that is older than a test has no threshold for it, and no result.
    """
    full = [window for window in reference.windows if window.images <= len(rows)]
    if not full:
        return None
    limits, classes = full[-1].thresholds, len(reference.class_shares)
    window = np.asarray(rows[-full[-1].images :]).mean(axis=0, dtype=np.float64)
    tests: dict[str, dict[str, tuple[float, float]]] = {signal: {} for signal in MEANING}
    for (signal, test), statistic in statistics(window, mean(reference), classes).items():
        if test in limits.get(signal, {}):
            tests[signal][test] = float(statistic), limits[signal][test]
    return Comparison(full[-1].images, tests, parts(window, classes))


def statistics(window: np.ndarray, reference: np.ndarray, classes: int) -> dict[tuple[str, str], np.ndarray]:
    """How far apart two means of rows [..., K] are, by each of TESTS: arrays [...].

    PSI: the population stability index, over the reference's deciles or over the classes.
    Excess: how far the class that has gained most lies above its share. Of few patients a class is often absent by
    chance, which is large in PSI and small here, so that this sees sooner that one class takes over.
    KS: the Kolmogorov–Smirnov distance between distribution functions, at the reference's 5 % quantiles.
    MMD: the maximum mean discrepancy (Gretton et al. 2012, JMLR 13:723), as the distance of mean features.
    """
    ours, theirs = parts(window, classes), parts(reference, classes)
    found = {
        ("class", "psi"): _psi(ours["class"], theirs["class"]),
        ("class", "excess"): (ours["class"] - theirs["class"]).max(axis=-1),
    }
    for signal in SCALARS:
        deciles = (np.add.reduceat(side[signal], _DECILES, axis=-1) for side in (ours, theirs))
        found[signal, "psi"] = _psi(*deciles)
        found[signal, "ks"] = np.abs(np.cumsum(ours[signal] - theirs[signal], axis=-1)).max(axis=-1)
    found["embedding", "mmd"] = np.linalg.norm(ours["embedding"] - theirs["embedding"], axis=-1)
    return found


def parts(mean: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """A mean of rows [..., K], signal by signal: shares of cells, shares of classes, features of the embedding."""
    ends = np.cumsum([*[CELLS] * len(SCALARS), classes])
    return dict(zip((*SCALARS, "class", "embedding"), np.split(mean, ends, axis=-1), strict=True))


def unit_length(embedding: np.ndarray) -> np.ndarray:
    """Embeddings [n, D], each scaled to length 1."""
    return np.asarray(embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12))


def features(embedding: np.ndarray, bandwidth: float) -> np.ndarray:
    """Random features [n, 2F] of embeddings [n, D] on the unit sphere, each row of length 1.

    Their products approximate a Gaussian kernel (Rahimi and Recht 2007). The frequencies are ±1 ÷ bandwidth, whose
    sums over many dimensions are as good as normal, so that no file needs to carry them.
    """
    phase = unit_length(embedding).astype(np.float32) @ random_signs(embedding.shape[1]) / np.float32(bandwidth)
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / np.float32(np.sqrt(FEATURES))


def sample(pixels: np.ndarray) -> np.ndarray:
    """Every k-th pixel of uint8 [S, S, 3], a copy of about SIDE pixels a side."""
    step = max(1, len(pixels) // SIDE)
    return pixels[::step, ::step].copy()


def colour(sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Saturation, 0..1, and the stain's hue, in degrees, of n of what `sample` took, uint8 [n, s, s, 3]: two of [n].

    Saturation is HSV's, over all pixels. The hue is that of the stained pixels' mean optical density (Beer–Lambert)
    in the hue-saturation-density plane of van der Laak et al. 2000, Cytometry 39:275; 0 lies opposite to what
    Romanowsky stains can give, so that nothing wraps around: eosin alone is at about 165, azure alone at 40.
    """
    flat = sampled.reshape(len(sampled), -1, 3)
    values = np.ascontiguousarray(np.moveaxis(flat, -1, 0))  # channels first: ten times faster
    highest = values.max(axis=0)
    saturation = ((highest - values.min(axis=0)) / np.maximum(highest, 1)).mean(axis=1)
    density = _DENSITY[values]
    stained = density.mean(axis=0) > STAINED
    stained |= ~stained.any(axis=1, keepdims=True)  # an image without stained pixels is measured on all of them
    red, green, blue = (density * stained).sum(axis=2) / stained.sum(axis=1)
    along, across = red - (red + green + blue) / 3, (green - blue) / np.sqrt(3)
    return saturation, np.degrees(np.arctan2(across, along)) % 360


def _psi(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    ours, theirs = np.maximum(ours, FLOOR), np.maximum(theirs, FLOOR)
    total: np.ndarray = ((ours - theirs) * np.log(ours / theirs)).sum(axis=-1)
    return total


@cache
def random_signs(dimensions: int) -> np.ndarray:
    """Random signs ±1, [D, F], equal on every machine: NumPy guarantees its raw random bits, not its distributions."""
    bits = np.random.PCG64(SEED).random_raw(dimensions * FEATURES // 64)
    unpacked = np.unpackbits(bits.astype("<u8").view(np.uint8))
    return (2 * unpacked.astype(np.float32) - 1).reshape(dimensions, FEATURES)
