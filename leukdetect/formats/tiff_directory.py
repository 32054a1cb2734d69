"""A TIFF's directories: the tags of each page, classic or BigTIFF, of either byte order; and a view of one page."""

import re
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leukdetect.formats.errors import ImageError

Number = int | float
Order = Literal["<", ">"]

SUBFILE, OLD_SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, STRIPS, ORIENTATION, SAMPLES, ROWS, STRIP_BYTES = 266, 270, 273, 274, 277, 278, 279
MAX_SAMPLE, PLANES, PREDICTOR, PALETTE, TILE_WIDTH, TILE_LENGTH = 281, 284, 317, 320, 322, 323
TILES, TILE_BYTES, SUB_DIRECTORIES, EXTRA, FORMAT, SMIN, SMAX = 324, 325, 330, 338, 339, 340, 341
CHROMA, PROFILE, EXIF = 530, 34675, 34665

MAX_PAGES = 256  # that are looked at for one that is no thumbnail
_MAX_TAGS = 512  # a page; real ones have fewer than a hundred
_MAX_DESCRIPTION = 200_000  # bytes that are searched
_TYPES = {  # NumPy's names of TIFF's types
    **{1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4", 12: "f8"},
    **{13: "u4", 16: "u8", 17: "i8", 18: "u8"},
}
_PAIRS = (5, 10)  # of numerator and denominator
# What ImageJ, OME-TIFF and tifffile write where each page holds one colour. No two matches may begin in one stretch of
# text, so that the search takes time in proportion to its length: an attribute holds no `<`, and few zeros.
_CHANNELS = (
    rb"\AImageJ=.*^channels=0{0,9}([2-9]|[1-9]\d)",
    rb"<(?:\w{1,9}:)?Pixels\b[^<>]{0,800}?\bSizeC=[\"']0{0,9}([2-9]|[1-9]\d)",
    rb"\"axes\": \"\w{0,9}C\w{0,9}\"",
)


@dataclass(frozen=True)
class Page:
    """One directory: its tags, as arrays."""

    order: Order
    tags: dict[int, tuple[int, np.ndarray]]  # type and values

    def values(self, tag: int) -> list[Number]:
        """All values of a tag; empty where it is missing."""
        if tag not in self.tags:
            return []
        kind, values = self.tags[tag]
        if kind in _PAIRS:
            return [float(top) / float(below) if below else 0.0 for top, below in values.reshape(-1, 2)]
        found: list[Number] = values.tolist()
        return found

    def whole(self, tag: int, default: int = 0) -> int:
        """The first value of a tag, a whole number."""
        return int(self.tags[tag][1][0]) if tag in self.tags and len(self.tags[tag][1]) else default

    @property
    def is_thumbnail(self) -> bool:
        """Of less than the full size, or a mask."""
        return bool(self.whole(SUBFILE) & 0b101) or self.whole(OLD_SUBFILE) == 2

    def raw(self, tag: int) -> bytes:
        """A tag's bytes; empty where it is missing."""
        return self.tags[tag][1].tobytes() if tag in self.tags else b""


def pages(data: bytes) -> list[Page]:
    """The directories up to the first that is no thumbnail, at most `MAX_PAGES`.

    Raises ImageError, struct.error: the first is broken; what follows a broken one is left out.
    """
    order: Order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    at = struct.unpack_from(f"{order}Q", data, 8)[0] if big else struct.unpack_from(f"{order}I", data, 4)[0]
    found: list[Page] = []
    seen: set[int] = set()
    while at and at not in seen and len(found) < MAX_PAGES:
        seen.add(at)
        try:
            page, at = _page(data, at, order, big)
        except struct.error:
            if not found:
                raise
            break
        found.append(page)
        if not page.is_thumbnail:
            break
    if not found:
        raise ImageError("the TIFF has no page")
    return found


def full(found: list[Page]) -> Page:
    """Of `pages` the one to show: the last, if it is no thumbnail.

    Raises ImageError: there is none, or each page is one channel of a picture in colour.
    """
    description, page = found[0].raw(DESCRIPTION)[:_MAX_DESCRIPTION], found[-1]
    if page.is_thumbnail and (len(found) > 1 or SUB_DIRECTORIES in page.tags):
        raise ImageError("all that the TIFF's pages hold are thumbnails; export the full picture as a plain TIFF")
    if len(page.values(BITS) or [1]) == 1 and page.whole(SAMPLES, 1) == 1 and page.whole(PHOTOMETRIC) in (0, 1):
        channels = any(re.search(each, description, re.DOTALL | re.MULTILINE) for each in _CHANNELS)
        if channels:
            raise ImageError(
                "the TIFF keeps each colour channel as a grey page of its own (ImageJ, OME-TIFF); "
                "save it as one RGB page (in ImageJ: Image, Type, RGB Color)"
            )
    return page


def view(data: bytes, order: Order, tags: dict[int, tuple[int, np.ndarray]]) -> bytes:
    """The file with these tags in a directory behind it, in place of its own: pixels stay where they are."""
    outside = bytearray()
    entries = []
    start = len(data) + len(data) % 2
    behind = start + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        kind, values = (4, values.astype("u4")) if kind in (16, 18) else (kind, values)
        content = values.astype(values.dtype.newbyteorder(order)).tobytes()
        count = len(values) // (2 if kind in _PAIRS else 1)
        if len(content) > 4:
            at = behind + len(outside)
            outside += content + bytes(len(content) % 2)
            content = struct.pack(f"{order}I", at)
        entries.append(struct.pack(f"{order}HHI", tag, kind, count) + content.ljust(4, b"\0"))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return b"".join((head, data[8:], bytes(len(data) % 2), directory, outside))


def _page(data: bytes, at: int, order: Order, big: bool) -> tuple[Page, int]:
    """The directory at an offset, and where the next one is (0: none)."""
    count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    first, size, inline, pointer = (at + 8, 20, 8, "Q") if big else (at + 2, 12, 4, "I")
    tags: dict[int, tuple[int, np.ndarray]] = {}
    if count > _MAX_TAGS:
        raise ImageError(f"the TIFF claims {count} tags a page")
    for entry in range(first, first + count * size, size):
        tag, kind, items = struct.unpack_from(f"{order}HH{pointer}", data, entry)
        if kind not in _TYPES:
            continue
        dtype = np.dtype(order + _TYPES[kind])
        items *= 2 if kind in _PAIRS else 1
        where = entry + size - inline
        if items * dtype.itemsize > inline:
            where = struct.unpack_from(order + pointer, data, where)[0]
        if where + items * dtype.itemsize <= len(data):  # else it points nowhere: as if it were not there
            tags[tag] = kind, np.frombuffer(data, dtype, items, where)
    end = first + count * size
    after = struct.unpack_from(order + pointer, data, end)[0] if end + inline <= len(data) else 0
    return Page(order, tags), after
