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

from leukdetect import apart
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


@dataclass(frozen=True)
class Job:
    """All that decides what the rows say. It is in the listing and in every part."""

    source: str
    root: str  # where relative paths start
    model: str
    model_version: str | None
    model_sha256: str
    precision: str
    max_body_bytes: int  # the limits are the server's settings of the same names
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

    job: Job
    content: np.ndarray  # uint8: the model file's bytes
    located: Located


def schema(contract: Contract) -> pa.Schema:
    """The columns of a part: what `POST /predict` answers, or `error` and nothing of it.

    `note` says what of a file was left out, such as a broken colour profile.
    """
    text, number = pa.string(), pa.float64()
    columns = {
        **dict.fromkeys(("sha256", "error", "note", "class"), text),
        **dict.fromkeys((*(f"p_{each.key}" for each in contract.classes), "p_malignant"), number),
        **{"malignant": pa.bool_(), "decision": text, "reasons": pa.list_(text), "not_excluded": pa.list_(text)},
        **dict.fromkeys(("unlikeness", "brightness", "sharpness", "stain"), number),
        **dict.fromkeys(("model_version", "precision"), text),
    }
    return pa.schema([pa.field("path", text, nullable=False), *columns.items()])


def score(paths: Sequence[str], job: Job, model: Model, threads: int, seen: Callable[[int], object]) -> pa.Table:
    """Scores a part's images, which so many threads read and decode; `seen` is told how many after each batch.

    Returns:
        One row an image, in the order of `paths`; the columns of `schema`.

    Raises:
        Problem: `UNREADABLE` images in a row could not be read, or their store could not be asked; nothing is known of
            the images then.
    """
    rows: list[dict[str, object]] = []
    unreadable = 0
    with ThreadPoolExecutor(threads) as pool:
        images = ahead(paths, lambda path: pool.submit(_decode, path, job, model), Future.result, lambda: AHEAD)
        looked = zip(paths, images, strict=True)
        while batch := list(islice(looked, BATCH)):
            for path, image in batch:
                unreadable = unreadable + 1 if isinstance(image, Unusable) and not image.read else 0
                if isinstance(image, Unusable) and unreadable == UNREADABLE:
                    raise Problem(
                        f"{UNREADABLE} images in a row could not be read, the last of them {path}: {image.error} "
                        "Is the folder mounted, and can the store be reached? Run it again to go on."
                    )
            rows += _rows(batch, model)
            seen(len(batch))
    return pa.Table.from_pylist(rows, schema(model.contract))


_received: dict[str, Model] = {}  # by sha256, of this worker's process


def on_a_worker(errand: Errand, paths: Sequence[str]) -> pa.Table:
    """As `score`, with one processor of a cluster, by a model that came with the errand.

    Raises Problem: also where the model was refused, such as an INT8 model that answers otherwise on this processor.
    """
    sha256 = errand.job.model_sha256
    if sha256 not in _received:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            errand.content.tofile(path)
            try:
                _received[sha256] = load(replace(errand.located, path=path), "auto", 1)
            except RefusedError as error:
                raise Problem(f"on {socket.gethostname()}: {error}") from error
    return score(paths, errand.job, _received[sha256], 2, lambda count: None)


def _decode(path: str, job: Job, model: Model) -> Decoded | Unusable:
    """Reads and decodes one image as the server does; what is wrong with it is an answer too."""
    try:
        data = image_files.read(image_files.join(job.root, path), job.max_body_bytes + 1)
    except OSError as error:
        return Unusable(f"It cannot be read ({error.strerror or error}).", read=False)
    if len(data) > job.max_body_bytes:
        return Unusable(f"At most {job.max_body_bytes / 1e6:g} MB are accepted.")
    how = model.contract.decode
    try:
        return apart.decode(data, how.size, job.max_pixels, how.scaled)
    except ImageError as error:
        return Unusable(error.sentence, hashlib.sha256(data).hexdigest())


def _rows(batch: Sequence[tuple[str, Decoded | Unusable]], model: Model) -> list[dict[str, object]]:
    usable = [image.pixels for _, image in batch if isinstance(image, Decoded)]
    outputs = zip(*model.run(np.stack(usable)), strict=True) if usable else iter(())
    same = {"model_version": model.located.version, "precision": model.contract.precision}
    rows: list[dict[str, object]] = []
    for path, image in batch:
        row: dict[str, object] = {"path": path, "sha256": image.sha256, **same}
        if isinstance(image, Unusable):
            rows.append(row | {"error": image.error})
            continue
        scores = dict(zip(ANSWER, next(outputs), strict=True))
        if not all(np.isfinite(each).all() for each in scores.values()):
            rows.append(row | {"error": "The model's answer is not finite."})
            continue
        found = answer(model.contract, image, scores)
        rows.append(
            row
            | vars(found)
            | vars(found.quality)
            | {f"p_{key}": share for key, share in found.probabilities.items()}
            | {"class": found.key, "note": image.header.note, "reasons": [reason.code for reason in found.reasons]}
        )
    return rows
