"""Opens a model file and runs many images through it, with plain onnxruntime and the contract in the file."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from leukdetect import contract, runtime
from pipeline.stage import Problem, progress, require

FP32 = Path("models/leukdetect.onnx")
INT8 = Path("models/leukdetect.int8.onnx")
BATCH = 4  # images: the maps of more do not fit in the processor's cache, which costs a tenth

Alter = Callable[[np.ndarray], np.ndarray]  # rows, int [n], to altered images uint8 [n, S, S, 3]


@dataclass(frozen=True)
class Altered:
    """Images that are altered as they are read, so that all processors do it, and no altered copy fills memory."""

    rows: np.ndarray  # int [N]
    alter: Alter

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice) -> np.ndarray:
        return self.alter(self.rows[some])


@dataclass(frozen=True)
class OnnxModel:
    """An open model file."""

    path: Path
    contract: contract.Contract
    session: onnxruntime.InferenceSession

    def predict(
        self, images: np.ndarray | Altered, outputs: tuple[str, ...] = ("probabilities",)
    ) -> dict[str, np.ndarray]:
        """As `answers`, a few images at once on each processor."""
        return answers(self.session, images, outputs, BATCH, self.path.name, runtime.cpus())

    def predicted(self, images: np.ndarray | Altered) -> np.ndarray:
        """The class of each image: int [N]."""
        return np.asarray(self.predict(images)["probabilities"].argmax(1))


def answers(
    session: onnxruntime.InferenceSession,
    images: np.ndarray | Altered,
    outputs: Sequence[str],
    batch: int = 1,
    description: str = "answers",
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Runs uint8 [N, S, S, 3], also a memory map, through a graph: float32 [N, …] for each name in `outputs`."""
    count = -(-len(images) // max(1, min(batch, -(-len(images) // threads))))
    ends = np.arange(count + 1) * len(images) // count  # of about equal batches: one image alone is rounded otherwise

    def run(start: int, end: int) -> list[np.ndarray]:
        return runtime.run(session, np.ascontiguousarray(images[start:end]), outputs)

    with ThreadPoolExecutor(threads) as pool:
        parts = list(progress(pool.map(run, ends, ends[1:]), description, count, "batch"))
    return {name: np.concatenate(arrays) for name, arrays in zip(outputs, zip(*parts, strict=True), strict=True)}


def load(path: Path, keys: Sequence[str] | None = None) -> OnnxModel:
    """Opens a model file.

    Raises Problem if it is missing, carries no contract or a broken one, or knows other classes than `keys`.
    """
    session = runtime.open_session(require(path, "export"), 1)
    try:
        promise = contract.parse(contract.metadata_of(session))
    except contract.ContractError as error:
        raise Problem(f"{path}: {error}") from error
    known = [c.key for c in promise.classes]
    if keys is not None and known != list(keys):
        raise Problem(f"{path} knows the classes {known}, but params.yaml has {keys}; `dvc repro export` makes it anew")
    return OnnxModel(path, promise, session)


def leads_to(proto: onnx.ModelProto, output: str, but_through: str = "") -> set[str]:
    """Names of the nodes that a tensor is computed from, its own among them; not those that only operators of the type
    `but_through` read, nor these."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    wanted, before = [output], set()
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node.name not in before and node.op_type != but_through:
            before.add(node.name)
            wanted.extend(node.input)
    return before


def base(proto: onnx.ModelProto) -> set[str]:
    """Names of the nodes that make the base's last maps, and pool them: all before the embedding but attention's."""
    return leads_to(proto, "embedding", but_through="Softmax")
