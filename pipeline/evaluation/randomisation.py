"""A model file with its weights shuffled from the top: what is left of its maps owes nothing to what was learned there.

On the ONNX file itself, as it is served. The closed form of the maps holds the head's kernels a second time: equal
kernels, transposed or not, are shuffled alike, so that map and answer stay those of one network.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from pipeline.model_file.onnx_model import leads_to

PARTS = {  # the share of the base's convolutions that is shuffled with the head, the last ones first
    "head": 0.0,
    "head_and_last_fifth": 0.2,  # of a ResNet-50: its last three blocks
    "everything": 1.0,
}


def sessions(path: Path, seed: int) -> Iterator[tuple[str, onnxruntime.InferenceSession]]:
    """The model file with ever more of its weights shuffled, by the names of PARTS."""
    proto = onnx.load(path)
    names = kernels(proto)
    for part, share in PARTS.items():
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        shuffle(copy, names["head"] | last(names["base"], share), seed)
        yield part, onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])


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


def shuffle(proto: onnx.ModelProto, names: dict[str, None], seed: int) -> None:
    """Shuffles each kernel's values, in place; equal kernels, transposed or not, alike."""
    rng = np.random.default_rng(seed)
    made: dict[bytes, np.ndarray] = {}
    by_name = {each.name: each for each in proto.graph.initializer}
    for name in names:
        value = numpy_helper.to_array(by_name[name])
        upright = _upright(value)
        key = upright.tobytes()
        if key not in made:
            made[key] = rng.permutation(upright.ravel()).reshape(upright.shape)
        back = made[key] if upright.shape == value.squeeze().shape else made[key].T
        by_name[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(back.reshape(value.shape)), name))


def _upright(value: np.ndarray) -> np.ndarray:
    """A matrix with its long side down, without sides of 1; what is no matrix as it is."""
    bare = value.squeeze()
    return np.ascontiguousarray(bare.T) if bare.ndim == 2 and bare.shape[0] < bare.shape[1] else bare
