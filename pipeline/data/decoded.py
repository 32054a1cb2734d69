"""Decodes image files into one array on disk, each as the model sees it."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from leukdetect import apart
from leukdetect.images import ImageError
from pipeline.stage import progress


def write(files: Sequence[Path], size: int, out: Path) -> Iterator[tuple[str, str]]:
    """Writes uint8 [N, size, size, 3] in the order of the files; one that cannot be used is left black.

    Yields the SHA-256 of each, and why it cannot be used, or ''.
    """
    with out.open("wb", buffering=0) as array:
        shape = (len(files), size, size, 3)
        np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = array.tell()
        array.truncate(start + int(np.prod(shape)))

        def one(row: int, file: Path) -> tuple[str, str]:
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            try:
                pixels = apart.sized(data, size).tobytes()
            except ImageError as error:
                return digest, str(error)
            # Not through a memory map: where the disk fills up, that kills the process without a word.
            if os.pwrite(array.fileno(), pixels, start + row * len(pixels)) < len(pixels):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
            return digest, ""

        with ThreadPoolExecutor() as pool:
            yield from progress(pool.map(one, range(len(files)), files), "decode", total=len(files))
