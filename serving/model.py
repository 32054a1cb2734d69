"""Opens a model file, and refuses one that would not answer here as it did where it was built."""

import base64
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from serving import contract, images
from serving.registry import Located

_ANSWER = ["probabilities", "unlikeness"]  # what a prediction needs; the graph skips the rest


class RefusedError(Exception):
    """A model file failed a check; the message names the check and what was found."""


@dataclass(frozen=True)
class Model:
    """A model file that passed every check."""

    located: Located
    contract: contract.Contract
    sha256: str
    session: onnxruntime.InferenceSession

    def infer(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Uint8 RGB [N, S, S, 3] to probabilities, float32 [N, C], and unlikeness, float32 [N]."""
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("only_execute_path_to_fetches", "1")
        probabilities, unlikeness = self.session.run(_ANSWER, {"image": pixels}, options)
        return probabilities, unlikeness


def load(located: Located) -> Model:
    """Opens the file, checks its contract and its graph, warms it up, and runs its golden set.

    Raises:
        RefusedError: one of the checks failed.
    """
    session = _open(located.path)
    try:
        promise = contract.parse(session.get_modelmeta().custom_metadata_map)
    except contract.ContractError as error:
        raise RefusedError(f"contract: {error}") from error
    _check_graph(session, promise)
    here = images.behaviour(promise.decode.size)
    if here != promise.decode.behaviour:
        raise RefusedError(
            f"decoder: this server decodes images otherwise ({here[:12]}…) than the one the model was built with "
            f"({promise.decode.behaviour[:12]}…); use the Pillow and simplejpeg versions it was built with"
        )
    with located.path.open("rb") as file:
        model = Model(located, promise, hashlib.file_digest(file, "sha256").hexdigest(), session)
    _check_golden(model)
    return model


def cpus() -> int:
    """The processors this process may use: its affinity mask, or fewer where a cgroup's quota says so."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2
        if quota != "max":
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no quota to be seen
    return max(1, allowed)


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads steal the time of whoever shares the machine: 70 ms instead of 111 with one busy neighbour.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
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
        alone = np.concatenate([model.infer(image[None])[0] for image in pixels])
        together = model.infer(pixels)[0]
    except Exception as error:  # as in _open
        raise RefusedError(f"warm-up: the graph does not run ({error})") from error
    difference = float(np.max(np.abs(np.stack([alone, together]) - expected)))
    if not difference <= model.contract.golden_tolerance:  # so that NaN fails too
        raise RefusedError(
            f"golden set: a probability differs by {difference:.4f} from the one where the model was built; "
            f"at most {model.contract.golden_tolerance:g} is accepted"
        )
