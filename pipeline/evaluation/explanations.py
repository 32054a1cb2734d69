"""Whether the maps of where the model looked can be believed: a section of reports/metrics.json.

Asked of the FP32 file's maps of the class that it gives each image: is there a map at all (`empty`); is it on the cell,
where the cell is known (`cell`); does it change with the weights (`randomised`); and does the answer change with the
pixels that the map marks (`deletion`, `insertion`)? Asked of the similar cases: are they of the image's class
(`similar`)?
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from leukdetect import similar
from pipeline.evaluation import metrics, randomisation
from pipeline.evaluation.answers import Answers, Maps, Sample, enlarged, maps
from pipeline.evaluation.metrics import Count, Estimate, Section
from pipeline.evaluation.randomisation import Alike
from pipeline.model_file.onnx_model import OnnxModel

CENTRE = 0.25  # standard deviation of the centre Gaussian, as a share of the side
STEPS = 8  # in which pixels are taken away or put in
MOST = 64  # images in the tests that alter pixels or weights, which ask the model 48 times about each
BLUR = 1 / 8  # of the side: hides what a nucleus looks like, and leaves where it is


class Game(Section):
    """How much of the map lies in the cell, beside other maps that could be laid over an image."""

    map: Estimate
    centre: Estimate
    uniform: Estimate
    best: Estimate
    above_uniform: Estimate


class OnCells(Section):
    """The map's energy in the cell, and how often its highest point lies there."""

    energy: Game
    pointing: Game


class Curves(Section):
    """The mean probability of the class after each step."""

    map: list[float]
    random: list[float]


class Altered(Section):
    """Areas under the curves, with pixels in the map's order and in a random map's; `gain` > 0: the map does better."""

    curves: Curves
    map: Estimate
    random: Estimate
    gain: Estimate


class Similar(Section):
    """The share of the nearest training images (`cases` of `index`) with the image's own class; `chance`: of all."""

    cases: Count
    index: Count
    same_class: Estimate
    chance: Estimate


class Explanations(Section):
    """Tests of the maps and of the similar cases."""

    grid: tuple[int, int]
    empty: Estimate
    cell: OnCells | None = None  # where the cell is known
    altered_images: Count | None = None  # this and the next three where some map is not empty
    randomised: dict[str, Alike] | None = None
    deletion: Altered | None = None
    insertion: Altered | None = None
    similar: Similar | None = None  # where the model file has an index


def measure(model: OnnxModel, test: Sample, answers: Answers, seed: int, cells: np.ndarray | None) -> Explanations:
    """All tests, with intervals over the images' groups.

    Args:
        seed: of the shuffled weights, the random maps and the choice of MOST images that have a map.
        cells: bool [N, S, S], where the cell is; None where that is not known.
    """
    seen, weights, rng = maps(answers, test.pixels), test.weights, np.random.default_rng(seed)
    empty = np.asarray((seen.grid <= 0).all(axis=(1, 2)))
    chosen = np.sort(rng.permutation(np.flatnonzero(~empty))[:MOST])
    few, theirs = Maps(*(each[chosen] for each in seen)), weights[:, chosen]
    altering: dict[str, Any] = {}
    if len(chosen):
        altering = {"altered_images": len(chosen), "randomised": randomisation.measure(model, few, theirs, seed)}
        altering |= altered(model, few, theirs, rng)
    index = similar.read(model.session.get_modelmeta().custom_metadata_map, len(model.contract.classes))
    return Explanations(
        grid=seen.grid.shape[1:],
        empty=metrics.estimate_mean(empty, weights),
        cell=None if cells is None else on_cells(seen.grid, cells, weights * ~empty),
        similar=None if index is None else same_class(index, answers.embedding, test.labels, weights),
        **altering,
    )


def on_cells(grid: np.ndarray, cells: np.ndarray, weights: np.ndarray) -> OnCells:
    """The pointing game (Zhang et al. 2016, arXiv:1608.00507) and the share of the map's energy in the cell.

    Beside the map: a Gaussian about the image's middle, a uniform map (for pointing: any of the grid's positions), and
    the best that any map on this grid could do. `weights` [R, N] are 0 for images without a map.
    """
    (n, h, w), side = grid.shape, cells.shape[1]
    axis = np.arange(side) - (side - 1) / 2
    gaussian = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * (CENTRE * side) ** 2))

    # A map is a mixture of maps of one position, so none has more energy in the cell than the best of these.
    alone = enlarged(np.eye(h * w, dtype=np.float32).reshape(-1, h, w), side)
    energy = np.einsum("nyx,pyx->np", cells, alone) / alone.sum(axis=(1, 2))
    rows, columns = (((np.arange(count) + 0.5) * side / count).astype(int) for count in (h, w))
    hits = cells[:, rows[:, None], columns].reshape(n, h * w)
    large = enlarged(grid, side)
    games = {
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
    found = {}
    for game, shares in games.items():
        shares["above_uniform"] = shares["map"] - shares["uniform"]
        found[game] = Game(**{name: metrics.estimate_mean(each, weights) for name, each in shares.items()})
    return OnCells(**found)


def altered(model: OnnxModel, seen: Maps, weights: np.ndarray, rng: np.random.Generator) -> dict[str, Altered]:
    """Deletion and insertion curves (Petsiuk, Das and Saenko 2018, arXiv:1806.07421) of the predicted class.

    Deletion paints pixels in the image's median colour, from the map's highest down: a good map's curve falls fast.
    Insertion puts them into a blurred copy: a good map's curve rises fast. `random` takes the order of a random map on
    the same grid, since any smooth map would beat single random pixels.
    """
    pixels, grid = seen.pixels, seen.grid
    side = pixels.shape[1]
    chance, random = (enlarged(rng.random(grid.shape, np.float32), side) for _ in range(2))
    scaled = enlarged(grid / grid.max(axis=(1, 2), keepdims=True), side)
    orders = {"map": scaled + 1e-3 * chance, "random": random}  # where the map is level, chance decides
    median = np.broadcast_to(np.median(pixels, axis=(1, 2), keepdims=True).astype(np.uint8), pixels.shape)
    blurred = ndimage.gaussian_filter(pixels.astype(np.float32), (0, BLUR * side, BLUR * side, 0))
    ends = {"deletion": (pixels, median), "insertion": (np.rint(blurred).astype(np.uint8), pixels)}

    def ask(images: np.ndarray) -> np.ndarray:
        return model.predict(images)["probabilities"][np.arange(len(images)), seen.predicted]

    result = {}
    for test, (start, end) in ends.items():
        first, last = ask(start), ask(end)  # both orders begin and end with the same images
        curves = {name: np.stack([first, *map(ask, mix(order, start, end)), last], 1) for name, order in orders.items()}
        areas = {name: np.trapezoid(curve, dx=1 / STEPS, axis=1) for name, curve in curves.items()}
        areas["gain"] = (areas["random"] - areas["map"]) * (1 if test == "deletion" else -1)
        result[test] = Altered(
            curves=Curves(**{name: np.round(curve.mean(axis=0), 4).tolist() for name, curve in curves.items()}),
            **{name: metrics.estimate_mean(area, weights) for name, area in areas.items()},
        )
    return result


def mix(order: np.ndarray, start: np.ndarray, end: np.ndarray) -> Iterator[np.ndarray]:
    """The steps from `start` to `end`, [n, S, S, 3] each, as pixels of the one replace the other's, highest first."""
    places = rankdata(-order.reshape(len(order), -1), method="ordinal", axis=1).reshape(order.shape)
    shares = (places - 1) / places[0].size  # 0 for the first pixel
    for step in range(1, STEPS):
        yield np.where((shares < step / STEPS)[..., None], end, start)


def same_class(index: similar.Index, embedding: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Similar:
    """How often the nearest training images have a test image's own class; `chance`: its class's share of the index."""
    near = np.array([[row for row, _ in index.nearest(each)] for each in embedding])
    same = (index.classes[near] == labels[:, None]).mean(axis=1)
    chance = (index.classes[None] == labels[:, None]).mean(axis=1)
    return Similar(
        cases=near.shape[1],
        index=len(index.ids),
        same_class=metrics.estimate_mean(same, weights),
        chance=metrics.estimate_mean(chance, weights),
    )
