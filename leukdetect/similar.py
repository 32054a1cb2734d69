"""Similar cases: the training images whose embeddings are nearest, from a small index that rides in the model file.

A second ONNX metadata key, `leukdetect.similar`, beside the contract's: base64 of a NumPy .npz archive. A file from
before there was an index has none, and a server from before ignores it.
"""

import base64
import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from leukdetect.contract import ContractError

METADATA_KEY = "leukdetect.similar"
MOST_BYTES = 64_000_000  # unpacked; one of 512 images has about 1 MB
CASES = 5  # enough to see whether they agree, few enough to be looked at


@dataclass(frozen=True, eq=False)
class Index:
    """Training images, each as its unit-length embedding projected on the principal directions of all of them."""

    mean: np.ndarray  # [D], of the unit-length embeddings
    directions: np.ndarray  # [D, k], orthonormal
    places: np.ndarray  # [n, k]
    classes: np.ndarray  # int [n], in the contract's order
    ids: list[str]  # hex, the beginning of each file's SHA-256
    thumbnails: list[bytes] | None  # image files; None where the data's licence lets none travel

    def nearest(self, embedding: np.ndarray, count: int = CASES) -> list[tuple[int, float]]:
        """The images nearest to an embedding [D], nearest first, and how far each is.

        The distance is Euclidean between embeddings of unit length, 0 to 2. What of this one lies outside the index's
        directions counts in full, so that an image unlike all others is near to none.
        """
        offset = embedding / max(float(np.linalg.norm(embedding)), 1e-12) - self.mean
        along = offset @ self.directions
        outside = max(float(offset @ offset - along @ along), 0.0)
        distances = np.sqrt(((self.places - along) ** 2).sum(axis=1) + outside)
        return [(int(row), float(distances[row])) for row in np.argsort(distances, kind="stable")[:count]]


def metadata(index: Index) -> dict[str, str]:
    """The index as an entry of an ONNX file's metadata. Places and directions are kept in half precision."""
    arrays: dict[str, Any] = {
        "mean": index.mean.astype(np.float16),
        "directions": index.directions.astype(np.float16),
        "places": index.places.astype(np.float16),
        "classes": index.classes.astype(np.uint8),
        "ids": np.array([list(bytes.fromhex(each)) for each in index.ids], np.uint8),
    }
    if index.thumbnails is not None:
        arrays["thumbnails"] = np.frombuffer(b"".join(index.thumbnails), np.uint8)
        arrays["lengths"] = np.array([len(each) for each in index.thumbnails], np.uint32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return {METADATA_KEY: base64.b64encode(buffer.getvalue()).decode()}


def read(metadata: dict[str, str], classes: int) -> Index | None:
    """The index in an ONNX file's metadata, for a model of so many classes; None where there is none.

    Raises ContractError: it is broken.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        packed = io.BytesIO(base64.b64decode(metadata[METADATA_KEY], validate=True))
        with zipfile.ZipFile(packed) as archive:  # which gives no more of a part than its directory says
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > MOST_BYTES:
            raise ValueError(f"unpacked it has {unpacked / 1e6:.0f} MB, and {MOST_BYTES / 1e6:g} are accepted")
        with np.load(packed, allow_pickle=False) as file:
            arrays = dict(file)
        index = Index(
            mean=arrays["mean"].astype(np.float32),
            directions=arrays["directions"].astype(np.float32),
            places=arrays["places"].astype(np.float32),
            classes=arrays["classes"].astype(int),
            ids=[row.tobytes().hex() for row in arrays["ids"]],
            thumbnails=_cut(arrays["thumbnails"], arrays["lengths"]) if "thumbnails" in arrays else None,
        )
        n = len(index.ids)
        fits = index.directions.shape == (len(index.mean), index.places.shape[-1]) and all(
            len(part) == n for part in (index.places, index.classes, index.thumbnails or index.ids)
        )
    except Exception as error:  # of zip, zlib, NumPy and base64, and what a damaged file makes them stumble over
        raise ContractError(f"the model file's index of similar cases cannot be read ({error!r})") from error
    if not (fits and n and index.classes.min() >= 0 and index.classes.max() < classes):
        raise ContractError(
            f"the model file's index of similar cases does not fit together: {n} ids, places {index.places.shape}, "
            f"directions {index.directions.shape}, classes {sorted(set(index.classes.tolist()))} of {classes}"
        )
    return index


def _cut(together: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    return [part.tobytes() for part in np.split(together, lengths.cumsum()[:-1])]
