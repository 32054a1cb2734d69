"""Computes a batch of a view, from pixels to the arrays to store, here or on a worker of a cluster.

Imports neither TensorFlow nor MLflow, so that a worker starts quickly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from leukdetect import runtime
from pipeline.network import augment
from pipeline.sections import Augment
from pipeline.stage import Problem

Stored = dict[str, np.ndarray]
Forward = Callable[[np.ndarray], Stored]


@dataclass(frozen=True)
class Batch:
    """Images, and which augmented view of them is wanted; None: not augmented."""

    view: int | None
    pixels: np.ndarray  # uint8 [n, S, S, 3]
    sha256: Sequence[str]  # of their files


@dataclass(frozen=True)
class Work:
    """What all batches share. `graph` is the frozen part of the network; None: nothing is frozen."""

    augment: Augment
    seed: int
    images: bool = True  # themselves are stored as `inputs`, where the frozen part does not give those
    graph: np.ndarray | None = None  # uint8: an ONNX file's bytes
    sha256: str = ""  # of them


def augmented(work: Work, batch: Batch) -> np.ndarray:
    """The view's images, uint8 [n, S, S, 3]."""
    if batch.view is None:
        return batch.pixels
    named = zip(batch.pixels, batch.sha256, strict=True)
    return np.stack([augment.view(image, work.augment, work.seed, batch.view, sha256) for image, sha256 in named])


_received: dict[str, Forward] = {}  # this worker process's sessions, by the graph's sha256


def on_a_worker(work: Work, batch: Batch) -> Stored:
    """The arrays to store of a batch, computed on one processor of a cluster."""
    if work.graph is not None and work.sha256 not in _received:
        _received[work.sha256] = session(work.graph.tobytes(), threads=1)
    return stored(_received.get(work.sha256), work, batch)


def stored(forward: Forward | None, work: Work, batch: Batch) -> Stored:
    """The outputs of `forward` for a batch's view, all but `pooled` in float16, and the images where `work` says so.

    Raises Problem if float16 cannot hold them.
    """
    images = augmented(work, batch)
    found = forward(images) if forward else {}
    stored = {what: values if what == "pooled" else _halved(values) for what, values in found.items()}
    return stored if "inputs" in stored or not work.images else {"inputs": images, **stored}


def _halved(values: np.ndarray) -> np.ndarray:
    most = np.finfo(np.float16).max
    if not (-most <= values.min() and values.max() <= most):  # so that NaN fails too
        raise Problem("activations are NaN or beyond float16: these weights do not fit this network's normalisation")
    return values.astype(np.float16)


def session(graph: bytes, threads: int) -> Forward:
    """A function from images to a graph's outputs, by onnxruntime."""
    opened = runtime.open_session(graph, threads)
    names = [output.name for output in opened.get_outputs()]
    return lambda images: dict(zip(names, runtime.run(opened, images, names), strict=True))
