"""A model file with its weights shuffled from the top: what is left of its maps owes nothing to what was learned there.

On the ONNX file itself, as it is served. The closed form of the maps holds the head's kernels a second time: equal
kernels, transposed or not, are shuffled alike, so that map and answer stay those of one network.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from scipy.stats import rankdata

from leukdetect.runtime import open_session
from pipeline.evaluation import metrics
from pipeline.evaluation.maps import Maps
from pipeline.evaluation.metrics import Estimate, Section
from pipeline.model_file.onnx_model import OnnxModel, leads_to

SHUFFLES = 6  # one network of shuffled weights favours one place, another another: one alone says nothing
PARTS = {  # the share of the base's convolutions that is shuffled with the head, the last ones first
    "head": 0.0,
    "head_and_last_fifth": 0.2,  # of a ResNet-50: its last three blocks
    "everything": 1.0,
}


class Alike(Section):
    """What is left of the maps, beside the maps: where neither is level, and how often nothing is left."""

    correlation: Estimate
    same_highest: Estimate
    empty: Estimate


def measure(model: OnnxModel, seen: Maps, weights: np.ndarray, seed: int) -> dict[str, Alike]:
    """Adebayo et al. 2018, "Sanity checks for saliency maps": weights shuffled from the top, layer under layer.

    For each part of the network that was shuffled: the rank correlation between an image's map and the one that is
    left of it for the same class, whether the highest position stayed, and how many maps are empty. `other_images` has
    the same for two images' maps: maps that share nothing but the model. Intervals resample groups and shuffles.
    """
    half = np.roll(np.arange(len(seen.grid)), len(seen.grid) // 2)
    left: dict[str, list[np.ndarray]] = {"other_images": [seen.grid[half]]}
    for name, session in sessions(model.path, range(seed, seed + SHUFFLES)):
        changed = OnnxModel(model.path, model.contract, session).predict(seen.pixels, ("cam",))["cam"]
        left.setdefault(name, []).append(changed[np.arange(len(changed)), seen.predicted])
    return {name: _alike(seen.grid, np.stack(after), weights, seed) for name, after in left.items()}


def _alike(before: np.ndarray, after: np.ndarray, weights: np.ndarray, seed: int) -> Alike:
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
    return Alike(
        correlation=metrics.estimate(metrics.mean(correlation, weights * ranked)),
        same_highest=metrics.estimate(metrics.mean(a.argmax(axis=1) == b.argmax(axis=1), weights * ranked)),
        empty=metrics.estimate(metrics.mean(b.max(axis=1) <= 0, weights)),
    )


def sessions(path: Path, seeds: Iterable[int]) -> Iterator[tuple[str, onnxruntime.InferenceSession]]:
    """The model file for each seed with ever more of its weights shuffled, by the names of PARTS.

    The kernels reach onnxruntime beside the graph and not within it: to write and read 90 MB of protobuf anew for
    each network would take as long as running it.
    """
    proto = onnx.load(path)
    names = kernels(proto)
    values = take_out(proto, names["head"] | names["base"])
    graph, matrices = proto.SerializeToString(), upright(values)
    for seed in seeds:
        for part, share in PARTS.items():
            after = values | shuffled(values, matrices, names["head"] | last(names["base"], share), seed)
            yield part, open_session(graph, weights=after)


def kernels(proto: onnx.ModelProto) -> dict[str, dict[str, None]]:
    """Names of the initializers of two and more dimensions, in the graph's order: the base's, up to the embedding, and
    all others' (`head`: the head, and with it the maps and the distance).

    Biases and batch normalisation stay: Adebayo et al. draw kernels anew, and what is normalised should stay in range.
    """
    large = {each.name for each in proto.graph.initializer if len([side for side in each.dims if side > 1]) > 1}
    base = leads_to(proto, "embedding")
    found: dict[str, dict[str, None]] = {"base": {}, "head": {}}
    for node in proto.graph.node:
        mine = found["base" if node.name in base else "head"]
        mine.update(dict.fromkeys(name for name in node.input if name in large))
    return found


def last(names: dict[str, None], share: float) -> dict[str, None]:
    """The last `share` of the names, rounded up."""
    return dict.fromkeys(list(names)[len(names) - int(np.ceil(share * len(names))) :])


def take_out(proto: onnx.ModelProto, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The values of initializers, by name, which the graph holds no longer: a session must be given them."""
    wanted, values = set(names), {}
    for each in proto.graph.initializer:
        if each.name in wanted:
            values[each.name] = numpy_helper.to_array(each)
            outside = {"data_type": each.data_type, "dims": each.dims, "data_location": onnx.TensorProto.EXTERNAL}
            each.CopyFrom(onnx.TensorProto(name=each.name, **outside))
            each.external_data.add(key="location", value="beside the graph")
    return values


def upright(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels without sides of 1, matrices with their long side down; equal ones are one array."""
    known: dict[bytes, np.ndarray] = {}
    bare = {name: value.squeeze() for name, value in values.items()}
    lying = {name for name, each in bare.items() if each.ndim == 2 and each.shape[0] < each.shape[1]}
    stood = {name: np.ascontiguousarray(each.T) if name in lying else each for name, each in bare.items()}
    return {name: known.setdefault(each.tobytes(), each) for name, each in stood.items()}


def shuffled(
    values: Mapping[str, np.ndarray], matrices: Mapping[str, np.ndarray], names: Iterable[str], seed: int
) -> dict[str, np.ndarray]:
    """Kernels with their values shuffled; those that are one array in `upright`'s `matrices`, alike."""
    rng = np.random.default_rng(seed)
    made: dict[int, np.ndarray] = {}
    after = {}
    for name in names:
        value, matrix = values[name], matrices[name]
        if id(matrix) not in made:
            made[id(matrix)] = rng.permutation(matrix.ravel()).reshape(matrix.shape)
        back = made[id(matrix)] if matrix.shape == value.squeeze().shape else made[id(matrix)].T
        after[name] = np.ascontiguousarray(back.reshape(value.shape))
    return after
