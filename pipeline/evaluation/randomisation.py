"""Do the maps change with the weights? What stays of a map after the weights are shuffled was not learned by them.

The ONNX file is shuffled, as it is served. It holds the head's kernels twice, for the answer and for the maps: equal
kernels, transposed or not, are shuffled alike, so that map and answer stay those of one network.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data
from scipy.stats import rankdata

from leukdetect.runtime import cpus, open_session
from pipeline.evaluation import metrics
from pipeline.evaluation.answers import Maps
from pipeline.evaluation.metrics import Estimate, Section
from pipeline.model_file.onnx_model import OnnxModel, base, leads_to

SHUFFLES = 6  # each network of shuffled weights favours a position of its own, so one alone says nothing
BATCH = 32
PARTS = {  # the share of the base's convolutions, from the last one back, that is shuffled with the head
    "head": 0.0,
    "head_and_last_fifth": 0.2,  # of a ResNet-50: its last three blocks
    "everything": 1.0,
}


class Alike(Section):
    """How alike two maps of an image are, where neither is level: rank correlation, and whether they peak at one place.

    `empty`: the share of images whose second map is empty.
    """

    correlation: Estimate
    same_highest: Estimate
    empty: Estimate


def measure(model: OnnxModel, seen: Maps, weights: np.ndarray, seed: int) -> dict[str, Alike]:
    """Adebayo et al. 2018, "Sanity checks for saliency maps": weights shuffled from the top, layer under layer.

    One result for each of `PARTS`. `other_images` compares the maps of two images of the same model instead: what such
    maps share, they owe to the model alone. Intervals resample groups and shuffles.
    """
    half = np.roll(np.arange(len(seen.grid)), len(seen.grid) // 2)
    left: dict[str, list[np.ndarray]] = {"other_images": [seen.grid[half]]}
    for name, cam in maps(model.path, seen.pixels, range(seed, seed + SHUFFLES)):
        left.setdefault(name, []).append(cam[np.arange(len(cam)), seen.predicted])
    return {name: alike(seen.grid, np.stack(after), weights, seed) for name, after in left.items()}


def alike(before: np.ndarray, after: np.ndarray, weights: np.ndarray, seed: int) -> Alike:
    """Compares maps [n, h, w] with k others of each image, [k, n, h, w].

    A level map has no ranks, and no highest position. The k are resampled as the groups are.
    """
    k, n = after.shape[:2]
    draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), len(weights))
    draws[0] = 1
    weights = (draws[:, :, None] * weights[:, None, :]).reshape(len(weights), -1)
    a, b = np.tile(before.reshape(n, -1), (k, 1)), after.reshape(k * n, -1)
    ranked = (np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0)
    x, y = (rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (a, b))
    correlation = metrics.ratio((x * y).sum(axis=1), np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))
    return Alike(
        correlation=metrics.estimate_mean(correlation, weights * ranked),
        same_highest=metrics.estimate_mean(a.argmax(axis=1) == b.argmax(axis=1), weights * ranked),
        empty=metrics.estimate_mean(b.max(axis=1) <= 0, weights),
    )


def maps(path: Path, pixels: np.ndarray, seeds: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """For each of PARTS and each seed, the maps [N, C, h, w] by the model file with so much of its weights shuffled.

    onnxruntime gets the kernels beside the graph: writing and reading 90 MB of protobuf for each network would take as
    long as running it. What lies before the shuffled kernels is run once for all seeds.
    """
    proto = onnx.load(path)
    names = kernels(proto)
    values = take_out(proto, names["head"] + names["base"])
    for part, share in PARTS.items():
        chosen = names["head"] + last(names["base"], share)
        before, after = cut(proto, chosen, "cam")
        kept = {"image": pixels}
        if before.graph.node:
            kept = run_graph(before, values, kept)
        for seed in seeds:
            yield part, run_graph(after, values | shuffled(values, chosen, seed), kept)["cam"]


def cut(proto: onnx.ModelProto, names: Container[str], output: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The part of a graph that no initializer of these names has a say in, and the rest, up to an output.

    The second's inputs are the first's outputs: the image itself, where the first is empty.
    """
    seen, changed = {"image"}, set[str]()  # tensors that depend on the image; on one of the initializers
    border: dict[str, None] = {}
    wanted = leads_to(proto, output)
    for node in proto.graph.node:  # in the order in which they run
        if any(name in seen for name in node.input):
            seen.update(node.output)
        if node.name in wanted and any(name in names or name in changed for name in node.input):
            changed.update(node.output)
            border |= {name: None for name in node.input if name in seen and name not in changed}
    between = list(border) or ["image"]
    parts = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(proto))
    return parts.extract_model(["image"], between), parts.extract_model(between, [output])


def run_graph(
    proto: onnx.ModelProto, values: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Runs many images through a graph: its outputs, by name. `values` are those that `take_out` took, or others."""
    weights = {each.name: values[each.name] for each in proto.graph.initializer if each.name in values}
    session, images = open_session(proto.SerializeToString(), 1, weights), len(next(iter(inputs.values())))

    def run(start: int) -> list[np.ndarray]:
        return list(session.run(None, {name: value[start : start + BATCH] for name, value in inputs.items()}))

    with ThreadPoolExecutor(cpus()) as pool:
        parts = zip(*pool.map(run, range(0, images, BATCH)), strict=True)
    return {each.name: np.concatenate(part) for each, part in zip(proto.graph.output, parts, strict=True)}


def kernels(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the initializers of two and more dimensions, in the graph's order: of the `base`, up to its last maps,
    and of the `head`, which here includes attention, the maps that are shown and the distance.

    Biases and batch normalisation are not shuffled: Adebayo et al. draw kernels only, and normalised values should stay
    in range.
    """
    large = {each.name for each in proto.graph.initializer if sum(side > 1 for side in each.dims) > 1}
    of_base = base(proto)
    found: dict[str, list[str]] = {"base": [], "head": []}
    for node in proto.graph.node:
        found["base" if node.name in of_base else "head"] += [name for name in node.input if name in large]
    return {part: list(dict.fromkeys(names)) for part, names in found.items()}


def last(names: list[str], share: float) -> list[str]:
    """The last `share` of the names, rounded up."""
    return names[len(names) - int(np.ceil(share * len(names))) :]


def take_out(proto: onnx.ModelProto, names: Container[str]) -> dict[str, np.ndarray]:
    """Removes the values of initializers from the graph, and returns them by name: a session must be given them."""
    values = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer if each.name in names}
    for each in proto.graph.initializer:
        if each.name in names:
            set_external_data(each, "beside the graph")
            each.ClearField("raw_data")
    return values


def shuffled(values: Mapping[str, np.ndarray], names: Iterable[str], seed: int) -> dict[str, np.ndarray]:
    """The named kernels with their values shuffled: alike, where kernels are equal or each other's transpose."""
    rng = np.random.default_rng(seed)
    made: dict[bytes, np.ndarray] = {}
    after = {}
    for name in names:
        bare = values[name].squeeze()
        lies = bare.ndim == 2 and bare.shape[0] < bare.shape[1]  # turned upright: a transposed copy equals its original
        matrix = np.ascontiguousarray(bare.T if lies else bare)
        key = matrix.tobytes()
        if key not in made:
            made[key] = rng.permutation(matrix.ravel()).reshape(matrix.shape)
        new = made[key].T if lies else made[key]
        after[name] = np.ascontiguousarray(new.reshape(values[name].shape))
    return after
