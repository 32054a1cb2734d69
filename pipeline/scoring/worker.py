"""One part of a job of `pipeline.score`: paths to a table of answers, one row an image, on this machine or another's.

Images are read and decoded by threads a few batches ahead of the model, and what is ahead is bounded.
"""

import hashlib
import socket
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from leukdetect import decoding
from leukdetect.answer import answer
from leukdetect.contract import ANSWER, Contract
from leukdetect.decoding import Decoded
from leukdetect.images import ImageError
from leukdetect.model_file import Model, RefusedError, load
from leukdetect.registry import Located
from pipeline.ahead import ahead
from pipeline.data import image_files
from pipeline.stage import Problem

# Larger ones gain nothing on a CPU. Fixed, not tuned: an answer's last digits may depend on it, and a job's rows must
# not depend on the machine.
BATCH = 4
AHEAD = 8 * BATCH  # images
UNREADABLE = 100  # in a row: then it is the disk or the store that fails, and no longer the image

Row = dict[str, object]


@dataclass(frozen=True)
class Limits:
    """As the server's settings of the same names."""

    max_body_bytes: int
    max_pixels: int


@dataclass(frozen=True)
class Unusable:
    """An image without an answer. `sha256` is None where not all of it was read."""

    error: str
    sha256: str | None = None
    read: bool = True


@dataclass(frozen=True)
class Errand:
    """What a worker on another machine is told once."""

    content: np.ndarray  # uint8: the model file's bytes
    sha256: str  # of them
    located: Located
    root: str
    limits: Limits


def schema(contract: Contract) -> pa.Schema:
    """The columns of a part: what `POST /predict` answers, or `error` and nothing of it."""
    classes = [pa.field(f"p_{each.key}", pa.float64()) for each in contract.classes]
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            ("sha256", pa.string()),
            ("error", pa.string()),
            ("class", pa.string()),
            *classes,
            ("p_malignant", pa.float64()),
            ("malignant", pa.bool_()),
            ("decision", pa.string()),
            ("reasons", pa.list_(pa.string())),
            ("unlikeness", pa.float64()),
            ("brightness", pa.float64()),
            ("sharpness", pa.float64()),
            ("model_version", pa.string()),
            ("precision", pa.string()),
        ]
    )


def score(
    paths: Sequence[str], root: str, model: Model, limits: Limits, threads: int, seen: Callable[[int], object]
) -> pa.Table:
    """Scores a part's images.

    Args:
        paths: as the listing has them; relative ones start at `root`.
        threads: that read and decode.
        seen: told, after each batch, how many images it had.

    Returns:
        One row an image, in the order of `paths`; the columns of `schema`.

    Raises:
        Problem: `UNREADABLE` images in a row could not be read, or their store could not be asked; nothing is known of
            the images then.
    """
    rows: list[Row] = []
    unreadable = 0

    def look(path: str) -> Decoded | Unusable:
        return decode(image_files.join(root, path), model.contract.decode.size, limits)

    with ThreadPoolExecutor(threads) as pool:
        images = ahead(paths, lambda path: pool.submit(look, path), Future.result, lambda: AHEAD)
        looked = zip(paths, images, strict=True)
        while batch := list(islice(looked, BATCH)):
            for path, image in batch:
                unreadable = unreadable + 1 if isinstance(image, Unusable) and not image.read else 0
                if isinstance(image, Unusable) and unreadable == UNREADABLE:
                    raise Problem(
                        f"{UNREADABLE} images in a row could not be read, the last of them {path}: {image.error} "
                        "Is the folder mounted, and can the store be reached? Run it again to go on."
                    )
            rows += answers(batch, model)
            seen(len(batch))
    return pa.Table.from_pylist(rows, schema(model.contract))


_received: dict[str, Model] = {}  # by sha256, of this worker's process


def on_a_worker(errand: Errand, paths: Sequence[str]) -> pa.Table:
    """As `score`, with one processor of a cluster, by a model that came with the errand.

    Raises:
        Problem: also where the model was refused, such as an INT8 model that answers otherwise on this processor.
    """
    if errand.sha256 not in _received:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            errand.content.tofile(path)
            try:
                _received[errand.sha256] = load(replace(errand.located, path=path), "auto", 1)
            except RefusedError as error:
                raise Problem(f"on {socket.gethostname()}: {error}") from error
    return score(paths, errand.root, _received[errand.sha256], errand.limits, 2, lambda count: None)


def decode(where: str, size: int, limits: Limits) -> Decoded | Unusable:
    """Reads and decodes one image as the server does; what is wrong with it is an answer too."""
    try:
        data = image_files.read(where, limits.max_body_bytes + 1)
    except OSError as error:
        return Unusable(f"It cannot be read ({error.strerror or error}).", read=False)
    if len(data) > limits.max_body_bytes:
        return Unusable(f"At most {limits.max_body_bytes / 1e6:g} MB are accepted.")
    try:
        return decoding.decode(data, size, limits.max_pixels)
    except ImageError as error:
        return Unusable(error.sentence, hashlib.sha256(data).hexdigest())


def answers(batch: Sequence[tuple[str, Decoded | Unusable]], model: Model) -> list[Row]:
    """The rows of a batch."""
    usable = [image for _, image in batch if isinstance(image, Decoded)]
    outputs = iter(zip(*model.run(np.stack([image.pixels for image in usable])), strict=True)) if usable else iter(())
    rows: list[Row] = []
    for path, image in batch:
        row: Row = {"path": path, "model_version": model.located.version, "precision": model.contract.precision}
        if isinstance(image, Unusable):
            rows.append(row | {"sha256": image.sha256, "error": image.error})
            continue
        row["sha256"] = image.sha256
        scores = dict(zip(ANSWER, next(outputs), strict=True))
        if not all(np.isfinite(each).all() for each in scores.values()):
            rows.append(row | {"error": "The model's answer is not finite."})
            continue
        found = answer(model.contract, image, scores)
        row |= {f"p_{key}": share for key, share in found.probabilities.items()}
        row |= {
            "class": found.key,
            "p_malignant": found.p_malignant,
            "malignant": found.malignant,
            "decision": found.decision,
            "reasons": [reason.code for reason in found.reasons],
            "unlikeness": found.unlikeness,
            "brightness": found.quality.brightness,
            "sharpness": found.quality.sharpness,
        }
        rows.append(row)
    return rows
