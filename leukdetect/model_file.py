"""Opens a model file, and refuses one that would not answer here as it did where it was built."""

import base64
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from leukdetect import contract, images, similar
from leukdetect.contract import ANSWER, FILES
from leukdetect.registry import Located
from leukdetect.runtime import open_session, run
from serving.models.tuning import Tuning, tune

Precision = Literal["auto", "fp32", "int8"]

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A model file failed a check; the message names the check and what was found."""


class GoldenError(RefusedError):
    """The file is whole, yet on this processor it does not answer as it did where it was built."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model file that passed every check."""

    located: Located
    contract: contract.Contract
    sha256: str
    session: onnxruntime.InferenceSession
    tuning: Tuning
    index: similar.Index | None  # of similar cases; None: the file is from before there was an index

    @property
    def best_batch(self) -> int:
        """How many images at once are fastest here."""
        return self.tuning.batch

    @property
    def seconds_an_image(self) -> float:
        """In batches of that size, as measured when it was loaded."""
        return self.tuning.seconds

    def run(self, pixels: np.ndarray, outputs: Sequence[str] = ANSWER) -> list[np.ndarray]:
        """Uint8 RGB [N, S, S, 3] to the named outputs, each float32 [N, …]; see `leukdetect.contract`."""
        return run(self.session, pixels, outputs)


def load(located: Located, precision: Precision, processors: int, like: Model | None = None) -> Model:
    """Opens a model file, checks its contract and its graph, and runs its golden set; it is warm afterwards.

    Args:
        located: an .onnx file, or the folder of a registered version, which holds one of each precision.
        precision: which of the folder's; auto is INT8 unless its golden set fails on this processor.
        processors: how many this process may use.
        like: a model of the same shape, whose measured tuning holds for this one too.

    Raises:
        RefusedError: one of the checks failed.
    """
    if not located.path.is_dir():
        return _load(located, located.path, processors, like)
    if precision != "auto":
        return _load(located, located.path / FILES[precision], processors, like)
    try:
        return _load(located, located.path / FILES["int8"], processors, like)
    except GoldenError as error:
        log.warning("INT8 does not agree on this processor; FP32 serves", extra={"error": str(error)})
        return _load(located, located.path / FILES["fp32"], processors, like)


def _load(located: Located, path: Path, processors: int, like: Model | None) -> Model:
    session = _open(path, like.tuning.threads if like else processors)
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        promise = contract.parse(metadata)
        index = similar.read(metadata, len(promise.classes))
    except contract.ContractError as error:
        raise RefusedError(f"contract: {error}") from error
    if promise.version == 1:
        log.warning("the model file is of contract version 1: no prediction sets, and nuclei are not looked for")
    _check_graph(session, promise)
    here = images.behaviour(promise.decode.size)
    if here != promise.decode.behaviour:
        raise RefusedError(
            f"decoder: this server decodes images otherwise ({here[:12]}…) than the one the model was built with "
            f"({promise.decode.behaviour[:12]}…); use the Pillow and simplejpeg versions it was built with"
        )
    if like and (like.contract.precision, like.contract.decode.size) == (promise.precision, promise.decode.size):
        tuning = like.tuning
    else:
        session, tuning = _tune(path, session, promise.decode.size, processors)
    with path.open("rb") as file:
        model = Model(located, promise, hashlib.file_digest(file, "sha256").hexdigest(), session, tuning, index)
    _check_golden(model)
    return model


def _tune(
    path: Path, first: onnxruntime.InferenceSession, size: int, processors: int
) -> tuple[onnxruntime.InferenceSession, Tuning]:
    sessions = {processors: first}
    try:
        return tune(lambda threads: sessions.get(threads) or _open(path, threads), size, processors)
    except Exception as error:  # onnxruntime's errors share no base class
        raise RefusedError(f"warm-up: the graph does not run ({error})") from error


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    try:
        return open_session(path, threads)
    except Exception as error:  # as in _tune
        raise RefusedError(f"file: onnxruntime cannot open {path} ({error})") from error


def _check_graph(session: onnxruntime.InferenceSession, promise: contract.Contract) -> None:
    size, classes = promise.decode.size, len(promise.classes)
    expected: dict[str, tuple[str, list[int | None]]] = {  # None: any size
        "image": ("tensor(uint8)", [None, size, size, 3]),
        "probabilities": ("tensor(float)", [None, classes]),
        "embedding": ("tensor(float)", [None, None]),
        "unlikeness": ("tensor(float)", [None]),
        "cam": ("tensor(float)", [None, classes, None, None]),
    }
    nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    if missing := expected.keys() - nodes.keys():
        raise RefusedError(f"graph: it has no {', '.join(sorted(missing))}; it has {', '.join(nodes)}")
    if [node.name for node in session.get_inputs()] != ["image"]:
        raise RefusedError("graph: it has other inputs than image")
    for name, (kind, shape) in expected.items():
        node = nodes[name]
        fits = len(node.shape) == len(shape) and all(
            want is None or have == want for have, want in zip(node.shape, shape, strict=True)
        )
        if node.type != kind or not fits or isinstance(node.shape[0], int):
            wanted = ["N", *("any" if side is None else side for side in shape[1:])]
            raise RefusedError(f"graph: {name} is {node.type} {node.shape}, not {kind} {wanted}")


def _check_golden(model: Model) -> None:
    """The same file can give other answers on another processor, INT8 above all: see before clients do.

    Each image alone, then all as one batch; so the session is warm afterwards too.
    """
    golden = model.contract.golden
    size = model.contract.decode.size
    try:
        pixels = np.stack([images.resize(images.decode(base64.b64decode(item.image)), size) for item in golden])
    except ValueError as error:  # ImageError and broken base64 are both
        raise RefusedError(f"golden set: an image cannot be read ({error})") from error
    expected = np.array([item.probabilities for item in golden])
    try:
        alone = np.concatenate([model.run(image[None])[0] for image in pixels])
        together = model.run(pixels)[0]
    except Exception as error:  # as in _tune
        raise RefusedError(f"warm-up: the graph does not run ({error})") from error
    difference = float(np.max(np.abs(np.stack([alone, together]) - expected)))
    if not difference <= model.contract.golden_tolerance:  # so that NaN fails too
        raise GoldenError(
            f"golden set: a probability differs by {difference:.4f} from the one where the model was built; "
            f"at most {model.contract.golden_tolerance:g} is accepted"
        )
