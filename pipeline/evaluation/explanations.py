"""Whether the maps of where the model looked can be believed: a section of reports/metrics.json.

On the FP32 file, for the class that it gives each image. Four questions: is there a map at all (`empty`); is it on the
cell, where the cell is known (`cell`); does it change with the weights (`randomised`); and does the answer change with
what it marks (`deletion`, `insertion`)? And one of the similar cases: are they of the image's class (`similar`)?
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.stats import rankdata

from leukdetect import similar
from pipeline.evaluation import metrics, randomisation
from pipeline.evaluation.answers import Answers, Sample
from pipeline.model_file.onnx_model import OnnxModel

CENTRE = 0.25  # standard deviation of the centre Gaussian, as a share of the side
STEPS = 8  # in which pixels are taken away or put in
MOST = 64  # images whose pixels or weights are altered: each is asked about 48 times
SHUFFLES = 6  # one network of shuffled weights favours one place, another another: one alone says nothing
BLUR = 1 / 8  # of the side: hides what a nucleus looks like, and leaves where it is


@dataclass(frozen=True, eq=False)
class Maps:
    """What the model says of N images, and where it looked for that."""

    predicted: np.ndarray  # int [N]
    confidence: np.ndarray  # [N], the probability of that class
    grid: np.ndarray  # [N, h, w], the map of the predicted class; 0 and above
    pixels: np.ndarray  # uint8 [N, S, S, 3]

    @property
    def empty(self) -> np.ndarray:
        """bool [N]: nothing spoke for the class."""
        return np.asarray((self.grid <= 0).all(axis=(1, 2)))


def maps(answers: Answers, pixels: np.ndarray) -> Maps:
    """Of the class that the model file gives each of uint8 [N, S, S, 3]."""
    predicted = answers.predicted
    return Maps(
        predicted, answers.confidence.astype(np.float32), answers.cam[np.arange(len(pixels)), predicted], pixels
    )


def enlarged(grid: np.ndarray, side: int) -> np.ndarray:
    """Maps [N, h, w] at [N, side, side], as `serving.api.explain` lays them over an image."""
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in grid]
    )


def measure(model: OnnxModel, sample: Sample, answers: Answers, seed: int, cells: np.ndarray | None) -> dict[str, Any]:
    """All of it, with intervals over the images' groups.

    Args:
        sample, answers: the test split, and what the model file says of it.
        seed: of the shuffled weights, the random maps and the choice of MOST images that have a map.
        cells: bool [N, S, S], where the cell is; None where that is not known.
    """
    seen, weights = maps(answers, sample.pixels), sample.weights
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "grid": list(seen.grid.shape[1:]),
        "empty": metrics.estimate(metrics.mean(seen.empty, weights)),
    }
    if cells is not None:
        result["cell"] = on_cells(seen.grid, cells, weights * ~seen.empty)
    shown = np.flatnonzero(~seen.empty)
    if len(shown):
        chosen = np.sort(rng.permutation(shown)[:MOST])
        few = Maps(seen.predicted[chosen], seen.confidence[chosen], seen.grid[chosen], seen.pixels[chosen])
        theirs = weights[:, chosen]
        result |= {"altered_images": len(chosen), "randomised": randomised(model, few, theirs, seed)}
        result |= altered(model, few, theirs, rng)
    index = similar.read(model.session.get_modelmeta().custom_metadata_map, len(model.contract.classes))
    if index is not None:
        result["similar"] = same_class(index, answers.embedding, sample.labels, weights)
    return result


# --- is it on the cell? ---


def on_cells(grid: np.ndarray, cells: np.ndarray, weights: np.ndarray) -> dict[str, dict[str, metrics.Estimate]]:
    """The pointing game (Zhang et al. 2016, arXiv:1608.00507) and the share of the map's energy in the cell.

    Beside the map: a Gaussian about the middle of the image, a map of the same value everywhere (for pointing: any of
    the grid's positions), and the best that any map on this grid could do.

    Args:
        grid: [N, h, w]; cells: bool [N, S, S].
        weights: [R, N]; 0 for images without a map.
    """
    n, h, w = grid.shape
    side = cells.shape[1]
    axis = np.arange(side) - (side - 1) / 2
    gaussian = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * (CENTRE * side) ** 2))

    # Each grid position alone: a map is a mixture of these, so none has more energy in the cell than the best of them.
    alone = enlarged(np.eye(h * w, dtype=np.float32).reshape(-1, h, w), side)
    energy = np.einsum("nyx,pyx->np", cells, alone) / alone.sum(axis=(1, 2))
    rows = ((np.arange(h) + 0.5) * side / h).astype(int)
    columns = ((np.arange(w) + 0.5) * side / w).astype(int)
    hits = cells[:, rows[:, None], columns[None, :]].reshape(n, h * w)

    large = enlarged(grid, side)
    shares = {
        "energy": {
            "map": (large * cells).sum(axis=(1, 2)) / np.maximum(large.sum(axis=(1, 2)), 1e-12),
            "centre": (gaussian * cells).sum(axis=(1, 2)) / gaussian.sum(),
            "uniform": cells.mean(axis=(1, 2)),
            "best": energy.max(axis=1),
        },
        "pointing": {
            "map": hits[np.arange(n), grid.reshape(n, -1).argmax(axis=1)],
            "centre": cells[:, side // 2, side // 2],
            "uniform": hits.mean(axis=1),
            "best": hits.any(axis=1),
        },
    }
    for parts in shares.values():
        parts["above_uniform"] = parts["map"] - parts["uniform"]
    return {
        game: {name: metrics.estimate(metrics.mean(each, weights)) for name, each in parts.items()}
        for game, parts in shares.items()
    }


# --- does it change with the weights? ---


def randomised(model: OnnxModel, seen: Maps, weights: np.ndarray, seed: int) -> dict[str, Any]:
    """Adebayo et al. 2018, "Sanity checks for saliency maps": weights shuffled from the top, layer under layer.

    For each part of the network that was shuffled: the rank correlation between an image's map and the one that is
    left of it for the same class, whether the highest position stayed, and how many maps are empty. `other_images` has
    the same for two images' maps: maps that share nothing but the model. Intervals resample groups and shuffles.
    """
    half = np.roll(np.arange(len(seen.grid)), len(seen.grid) // 2)
    left: dict[str, list[np.ndarray]] = {"other_images": [seen.grid[half]]}
    for name, session in randomisation.sessions(model.path, range(seed, seed + SHUFFLES)):
        changed = OnnxModel(model.path, model.contract, session).predict(seen.pixels, ("cam",))["cam"]
        left.setdefault(name, []).append(changed[np.arange(len(changed)), seen.predicted])
    return {name: _alike(seen.grid, np.stack(after), weights, seed) for name, after in left.items()}


def _alike(before: np.ndarray, after: np.ndarray, weights: np.ndarray, seed: int) -> dict[str, metrics.Estimate]:
    """How alike maps [n, h, w] and what is left of them [k, n, h, w] are, where both say something.

    A level map has no ranks, and an empty one no highest place. Each of the k is drawn as the groups are.
    """
    k, n = after.shape[:2]
    draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), len(weights))
    draws[0] = 1
    weights = (draws[:, :, None] * weights[:, None, :]).reshape(len(weights), -1)
    a, b = np.tile(before.reshape(n, -1), (k, 1)), after.reshape(k * n, -1)
    ranked = (np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0)
    ranks_a, ranks_b = (rankdata(each, axis=1) for each in (a, b))
    ranks_a, ranks_b = (each - each.mean(axis=1, keepdims=True) for each in (ranks_a, ranks_b))
    norm = np.sqrt((ranks_a**2).sum(axis=1) * (ranks_b**2).sum(axis=1))
    correlation = np.divide((ranks_a * ranks_b).sum(axis=1), norm, out=np.zeros(len(a)), where=ranked)
    return {
        "correlation": metrics.estimate(metrics.mean(correlation, weights * ranked)),
        "same_highest": metrics.estimate(metrics.mean(a.argmax(axis=1) == b.argmax(axis=1), weights * ranked)),
        "empty": metrics.estimate(metrics.mean(b.max(axis=1) <= 0, weights)),
    }


# --- does the answer change with what it marks? ---


def altered(model: OnnxModel, seen: Maps, weights: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Deletion and insertion curves (Petsiuk, Das and Saenko 2018, arXiv:1806.07421) of the predicted class.

    Deletion paints pixels in the image's median colour, those that the map marks most first: a good map's curve falls
    fast. Insertion puts them into a blurred copy: a good map's rises fast. `random` is the order of a random map on the
    same grid: single random pixels would make noise that no map makes, and be beaten by anything smooth.

    Returns:
        For each: the mean probability after each step with the map's and with the random order, the areas under the
        two curves, and the `gain` of the map's over the random one, above 0 if the map does better.
    """
    pixels, grid = seen.pixels, seen.grid
    side = pixels.shape[1]
    scaled = grid / grid.max(axis=(1, 2), keepdims=True)
    chance = enlarged(rng.random(grid.shape, dtype=np.float32), side)
    # Where the map is level, chance decides.
    orders = {
        "map": enlarged(scaled, side) + 1e-3 * chance,
        "random": enlarged(rng.random(grid.shape, np.float32), side),
    }
    median = np.broadcast_to(np.median(pixels, axis=(1, 2), keepdims=True).astype(np.uint8), pixels.shape)
    blurred = ndimage.gaussian_filter(pixels.astype(np.float32), (0, BLUR * side, BLUR * side, 0))
    ends = {"deletion": (pixels, median), "insertion": (np.rint(blurred).astype(np.uint8), pixels)}

    def ask(images: np.ndarray) -> np.ndarray:
        return model.predict(images)["probabilities"][np.arange(len(images)), seen.predicted]

    result = {}
    for test, (start, end) in ends.items():
        # Both orders begin and end with the same images, and one end is the images as they are.
        first, last = (seen.confidence if side is pixels else ask(side) for side in (start, end))
        curves = {
            name: np.stack([first, *map(ask, _mixed(order, start, end)), last], axis=1)
            for name, order in orders.items()
        }
        areas = {name: np.trapezoid(curve, dx=1 / STEPS, axis=1) for name, curve in curves.items()}
        gain = (areas["random"] - areas["map"]) * (1 if test == "deletion" else -1)
        result[test] = {
            "curves": {name: np.round(curve.mean(axis=0), 4).tolist() for name, curve in curves.items()},
            **{name: metrics.estimate(metrics.mean(area, weights)) for name, area in areas.items()},
            "gain": metrics.estimate(metrics.mean(gain, weights)),
        }
    return result


def _mixed(order: np.ndarray, start: np.ndarray, end: np.ndarray) -> Iterator[np.ndarray]:
    """The steps between `start` and `end`, [n, S, S, 3] each, while pixels of one become the other's, highest first."""
    places = rankdata(-order.reshape(len(order), -1), method="ordinal", axis=1).reshape(order.shape)
    shares = (places - 1) / places[0].size  # 0 for the first pixel
    for step in range(1, STEPS):
        yield np.where((shares < step / STEPS)[..., None], end, start)


# --- are similar cases of the same class? ---


def same_class(index: similar.Index, embedding: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Share of the nearest training images that have a test image's own class; `chance` is its share of the index."""
    near = np.array([[row for row, _ in index.nearest(each)] for each in embedding])
    same = (index.classes[near] == labels[:, None]).mean(axis=1)
    chance = (index.classes[None] == labels[:, None]).mean(axis=1)
    return {
        "cases": near.shape[1],
        "index": len(index.ids),
        "same_class": metrics.estimate(metrics.mean(same, weights)),
        "chance": metrics.estimate(metrics.mean(chance, weights)),
    }
