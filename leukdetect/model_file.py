"""Opens a model file, and refuses one that would not answer here as it did where it was built."""

import base64
import hashlib
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from leukdetect import answer, apart, contract, decoding, explanation, images, similar
from leukdetect.child import Child, EndedError
from leukdetect.contract import ANSWER, FILES
from leukdetect.registry import Located, holding
from leukdetect.runtime import cpus, open_session, processor, run

Precision = Literal["auto", "fp32", "int8"]

# What a file from a registry may take to be loaded and to run its golden set, before it may come into this process.
TRIAL_CPU_SECONDS, TRIAL_SECONDS = 60, 120  # a ResNet-50 takes one; other work may leave it a quarter of a processor
TRIAL_MEMORY, TRIAL_THREAD, TRIAL_BYTE = 400_000_000, 16_000_000, 3  # bytes: in all, a thread, a byte of the file
TRIED = "tried.txt"  # in a version's folder: which files were tried, and where

log = logging.getLogger(__name__)
_tried: set[str] = set()


class RefusedError(Exception):
    """A model file failed a check; the message names the check and what was found."""


class GoldenError(RefusedError):
    """The file is intact, but its golden images get other answers on this processor than where it was built."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model file that passed every check."""

    located: Located
    contract: contract.Contract
    sha256: str
    session: onnxruntime.InferenceSession
    index: similar.Index | None  # of similar cases; None: the file is from before there was an index
    threads: int
    seconds_an_image: float  # measured on the golden images, one at a time
    single: onnxruntime.InferenceSession | None  # runs on its caller's thread; None: was not asked for, or gains little

    def is_of(self, located: Located) -> bool:
        """Whether its file is the one that the registry tells of."""
        return located.sha256.get(self.contract.precision, self.sha256) == self.sha256

    @property
    def side_by_side(self) -> bool:
        """Whether several callers get more answers together than one after the other."""
        return self.single is not None

    @property
    def explaining(self) -> tuple[str, ...]:
        """The outputs that an explanation needs: `attention` too, if the model has it."""
        has = {node.name for node in self.session.get_outputs()}
        return (*explanation.OUTPUTS, contract.ATTENTION) if contract.ATTENTION in has else explanation.OUTPUTS

    def run(self, pixels: np.ndarray, outputs: Sequence[str] = ANSWER, *, beside: bool = False) -> list[np.ndarray]:
        """Uint8 RGB [N, S, S, 3] to the named outputs, each float32 [N, …]; see `leukdetect.contract`.

        Args:
            beside: on the caller's thread alone, beside other runs of this kind, if the model is `side_by_side`.
        """
        return run((beside and self.single) or self.session, pixels, outputs)

    def predict(self, image: decoding.Source) -> answer.Answer:
        """The answer to one image, the very one that the server and a scoring job give.

        Args:
            image: a file's bytes or path, a Pillow image, or uint8 [H, W, 3] RGB.

        Raises:
            ImageError: it is no image that can be used; the message says why.
            OSError: the path cannot be read.
        """
        return self._ask(image, ANSWER)[0]

    def explain(self, image: decoding.Source, key: str | None = None) -> explanation.Explanation:
        """Where the model looked for a class (the highest, unless given by its key), and similar training images.

        Raises:
            KeyError: the model has no such class.
            ImageError, OSError: as `predict`.
        """
        wanted = None if key is None else self.contract.index_of(key)
        found, outputs = self._ask(image, self.explaining)
        return explanation.explain(self.contract, self.index, found, outputs, decoding.picture(image), wanted)

    def _ask(self, image: decoding.Source, names: Sequence[str]) -> tuple[answer.Answer, dict[str, np.ndarray]]:
        seen = apart.look(image, self.contract.decode.size, self.contract.decode.scaled)
        outputs = dict(zip(names, (each[0] for each in self.run(seen.pixels[None], names)), strict=True))
        return answer.answer(self.contract, seen, outputs), outputs


def load(
    located: Located, precision: Precision = "auto", threads: int | None = None, *, side_by_side: bool = False
) -> Model:
    """Opens a model file, checks its contract and its graph, and runs its golden set; it is warm afterwards.

    Args:
        located: an .onnx file, or the folder of a registered version, which holds one of each precision.
        precision: which of the folder's; auto is INT8 unless its golden set fails on this processor.
        threads: of the model; else as many as this process may use processors.
        side_by_side: also for runs beside one another, a thread each, which gain a tenth and take the model's memory
            a second time; INT8 alone, since FP32 gains half of that and takes twice as much.

    Raises:
        RefusedError: one of the checks failed.
        RegistryError: it is a version whose folder was removed meanwhile.
    """
    threads = threads or cpus()
    if (located.version is None and not located.path.is_dir()) or located.path.is_file():
        return _load(located, located.path, threads, side_by_side)
    with holding(located.path):
        if precision != "auto":
            return _load(located, located.path / FILES[precision], threads, side_by_side)
        try:
            return _load(located, located.path / FILES["int8"], threads, side_by_side)
        except GoldenError as error:
            log.warning("INT8 does not agree on this processor; FP32 serves", extra={"error": str(error)})
            return _load(located, located.path / FILES["fp32"], threads, side_by_side)


def _load(located: Located, path: Path, threads: int, side_by_side: bool) -> Model:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RefusedError(f"file: {path} cannot be read ({error.strerror})") from error
    if located.version is not None and path != located.path:  # in the folder of a registered version
        expected = {FILES[precision]: each for precision, each in located.sha256.items()}.get(path.name)
        if sha256 != expected:
            raise RefusedError(f"hash: {path.name} is not the file that came from the registry, but another or damaged")
        _try_apart(path, sha256, threads)
    session = _open(path, threads)
    try:
        metadata = contract.metadata_of(session)
        promise = contract.parse(metadata)
        index = similar.read(metadata, len(promise.classes))
    except contract.ContractError as error:
        raise RefusedError(f"contract: {error}") from error
    if promise.version == 1:
        log.warning("the model file is of contract version 1: no prediction sets, and nuclei are not looked for")
    _check_graph(session, promise)
    _check_decoder(promise.decode)
    seconds = _check_golden(session, promise)
    single = _open(path, 1) if side_by_side and threads > 1 and promise.precision == "int8" else None
    if single:
        _check_golden(single, promise)
    return Model(located, promise, sha256, session, index, threads, seconds, single)


def _try_apart(path: Path, sha256: str, threads: int) -> None:
    """Has the file loaded and run in a process with budgets, unless it was before, by this process or on this machine.

    Raises RefusedError: it was refused there, or it is over a budget.
    """
    here = processor().get("model name", platform.machine())
    line, notes = f"{sha256} onnxruntime {onnxruntime.__version__} {here}", path.with_name(TRIED)
    with suppress(OSError, UnicodeDecodeError):
        if line in notes.read_text().splitlines():
            return
    if sha256 in _tried:
        return
    memory = TRIAL_MEMORY + TRIAL_THREAD * threads + TRIAL_BYTE * path.stat().st_size
    question = {"path": str(path.absolute()), "threads": threads, "memory": memory, "seconds": TRIAL_CPU_SECONDS}
    child = Child("leukdetect.trial")
    try:
        verdict = child.ask(question, TRIAL_SECONDS)
    except EndedError as error:
        raise RefusedError(f"trial: to load it and to run its golden set {error}") from error
    finally:
        child.close()
    if verdict["refused"] and not verdict["golden"]:
        raise RefusedError(verdict["refused"])
    _tried.add(sha256)
    with suppress(OSError), notes.open("a") as file:  # a disk that is full or read-only: tried again at the next start
        file.write(f"{line}\n")
    if verdict["refused"]:
        raise GoldenError(verdict["refused"])


def _check_decoder(promise: contract.Decode) -> None:
    here = images.behaviour(promise.size, version=3 if promise.scaled else 2)
    if promise.behaviour == here:
        return
    if promise.behaviour != images.behaviour(promise.size, version=1):
        raise RefusedError(
            f"decoder: this machine decodes images otherwise ({here[:12]}…) than the one the model was built with "
            f"({promise.behaviour[:12]}…); use the Pillow and simplejpeg versions it was built with"
        )
    log.warning(
        "the model file is from before colour profiles were applied and odd depths scaled: it gets such images as a "
        "viewer shows them, and was trained on them as they are stored. Train it anew if its images were of that kind"
    )


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    try:
        return open_session(path, threads)
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
    if contract.ATTENTION in nodes:
        expected[contract.ATTENTION] = ("tensor(float)", [None, None, None])
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


def _check_golden(session: onnxruntime.InferenceSession, promise: contract.Contract) -> float:
    """Runs the golden set, since the same file can give other answers on another processor, INT8 above all.

    Each image runs alone, then all run as one batch, which also warms the session up.

    Returns:
        Seconds that one image takes: the minimum, since noise only adds.
    """
    golden = promise.golden
    try:
        pixels = np.stack(
            [images.sized(base64.b64decode(item.image), promise.decode.size, promise.decode.scaled) for item in golden]
        )
    except ValueError as error:  # ImageError and broken base64 are both
        raise RefusedError(f"golden set: an image cannot be read ({error})") from error
    expected = np.array([item.probabilities for item in golden])
    try:
        alone, seconds = [], []
        for image in pixels:
            started = time.perf_counter()
            alone.append(run(session, image[None], ANSWER)[0])
            seconds.append(time.perf_counter() - started)
        together = run(session, pixels, ANSWER)[0]
    except Exception as error:  # onnxruntime's errors share no base class
        raise RefusedError(f"warm-up: the graph does not run ({error})") from error
    difference = float(np.max(np.abs(np.stack([np.concatenate(alone), together]) - expected)))
    if not difference <= promise.golden_tolerance:  # so that NaN fails too
        raise GoldenError(
            f"golden set: a probability differs by {difference:.4f} from the one where the model was built; "
            f"at most {promise.golden_tolerance:g} is accepted"
        )
    return min(seconds)
