"""A TIFF writer for what Pillow does not write: any samples, planes apart, tiles, BigTIFF, either byte order, pages."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Order = Literal["<", ">"]
_SIZES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}


@dataclass(frozen=True)
class Page:
    """Samples [H, W, C] or [H, W] and how they are stored; `tags` are {tag: (type, values)} beside the usual ones."""

    samples: np.ndarray
    photometric: int | None = None
    apart: bool = False  # each plane by itself
    tile: tuple[int, int] | None = None  # height, width
    rows: int | None = None  # of a strip
    deflated: bool = False
    differences: bool = False  # the horizontal predictor
    bits: int | None = None  # packed, if it is no type's
    extra: Sequence[int] = ()
    tags: Mapping[int, tuple[int, Any]] = field(default_factory=dict)


def tiff(*pages: Page, order: Order = "<", big: bool = False) -> bytes:
    """The file of these pages."""
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42))
    out += struct.pack(f"{order}HHQ", 8, 0, 0) if big else struct.pack(f"{order}I", 0)
    link = len(out) - (8 if big else 4)
    pointer = "Q" if big else "I"
    for page in pages:
        entries = dict(_tags(page, out, order))
        struct.pack_into(order + pointer, out, link, len(out))
        out += struct.pack(f"{order}{'Q' if big else 'H'}", len(entries))
        size, inline = (20, 8) if big else (12, 4)
        behind = len(out) + size * len(entries) + inline
        table, outside = bytearray(), bytearray()
        for tag, (kind, values) in sorted(entries.items()):
            values = values if isinstance(values, bytes | tuple | list) else [values]
            content = (
                values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{_SIZES[kind]}", *values)
            )
            table += struct.pack(f"{order}HH{pointer}", tag, kind, len(values))
            if len(content) > inline:
                table += struct.pack(order + pointer, behind + len(outside))
                outside += content + bytes(len(content) % 2)
            else:
                table += content.ljust(inline, b"\0")
        out += table
        link = len(out)
        out += bytes(inline) + outside
    return bytes(out)


def _tags(page: Page, out: bytearray, order: Order) -> Mapping[int, tuple[int, Any]]:
    samples = page.samples if page.samples.ndim == 3 else page.samples[..., None]
    height, width, count = samples.shape
    planes = [samples[..., n : n + 1] for n in range(count)] if page.apart else [samples]
    down, across = page.tile or (page.rows or height, width)
    places, sizes = [], []
    for plane in planes:
        for top in range(0, height, down):
            for left in range(0, width, across):
                part = plane[top : top + down, left : left + across]
                if page.tile:
                    part = np.pad(part, ((0, down - part.shape[0]), (0, across - part.shape[1]), (0, 0)))
                if page.differences:
                    part = np.diff(part, axis=1, prepend=part.dtype.type(0))
                content = _bytes(part, page.bits, order)
                content = zlib.compress(content) if page.deflated else content
                out += bytes(len(out) % 2)
                places.append(len(out))
                sizes.append(len(content))
                out += content
    depth = page.bits or samples.dtype.itemsize * 8
    kinds = {"u": 1, "i": 2, "f": 3}
    colours = count - len(page.extra)
    photometric = page.photometric if page.photometric is not None else (2 if colours == 3 else 1)
    tags: dict[int, tuple[int, Any]] = {
        **{256: (4, width), 257: (4, height), 258: (3, [depth] * count), 259: (3, 8 if page.deflated else 1)},
        **{262: (3, photometric), 277: (3, count), 284: (3, 2 if page.apart else 1)},
        339: (3, [kinds[samples.dtype.kind]] * count),
    }
    if page.tile:
        tags |= {322: (3, across), 323: (3, down), 324: (4, places), 325: (4, sizes)}
    else:
        tags |= {273: (4, places), 278: (4, down), 279: (4, sizes)}
    if page.differences:
        tags[317] = 3, 2
    if page.extra:
        tags[338] = 3, list(page.extra)
    return {**tags, **page.tags}


def _bytes(part: np.ndarray, bits: int | None, order: Order) -> bytes:
    if bits is None:
        return part.astype(part.dtype.newbyteorder(order)).tobytes()
    ones = (part.reshape(len(part), -1)[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(ones.reshape(len(part), -1).astype(np.uint8), axis=1).tobytes()
