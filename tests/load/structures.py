"""Mutations that keep a file's frame whole: its segments, chunks, tags and boxes, with checksums and lengths that fit.

A flipped bit ends most files at the first check of a decoder; what is wrong here lies behind it.
"""

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from tests.load.mutations import SEEDS, mutate

Random = np.random.Generator
Part = tuple[bytes, bytes]  # what it is called, and what it holds
NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 4095, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)


def structured(kind: str, random: Random) -> bytes:
    """A seed of this kind, changed in its structure; a tenth with faults of any kind on top."""
    data = SEEDS[kind]
    how: Callable[[bytes, Random], bytes] = _HOW[kind.split(",")[0]]
    for _ in range(int(random.integers(1, 3))):
        data = how(data, random)
    return mutate(data, random) if random.random() < 0.1 else data


def _pick(random: Random, of: Sequence[object]) -> int:
    return int(random.integers(len(of)))


def _shuffled(parts: list[Part], random: Random, kinds: Sequence[bytes], keep: int = 0) -> list[Part]:
    """One part changed, doubled (also a hundred times), left out, moved, renamed, or put in anew."""
    if len(parts) <= keep:
        return parts
    at = keep + _pick(random, parts[keep:])
    name, body = parts[at]
    match random.integers(7):
        case 0:
            parts[at] = name, _numbers(body, random)
        case 1:
            parts[at] = name, mutate(body, random)
        case 2:
            parts[at:at] = [parts[at]] * int(random.choice([1, 2, 100]))
        case 3:
            del parts[at]
        case 4:
            parts.insert(keep + _pick(random, parts[keep:]), parts.pop(at))
        case 5:
            parts[at] = kinds[_pick(random, kinds)], body
        case _:
            body = random.bytes(int(random.choice([0, 1, 13, 200, 5000])))
            body = b"x\0\0" + zlib.compress(bytes(200_000)) if random.random() < 0.3 else body
            parts.insert(at, (kinds[_pick(random, kinds)], body))
    return parts


def _numbers(body: bytes, random: Random) -> bytes:
    """A number of one, two or four bytes somewhere in the first 40, set to what may be an edge."""
    width = int(random.choice([1, 2, 4]))
    if len(body) < width:
        return body
    at = int(random.integers(min(40, len(body) - width + 1)))
    number = NUMBERS[int(random.integers(len(NUMBERS)))] % 256**width
    return body[:at] + number.to_bytes(width, "big" if random.random() < 0.5 else "little") + body[at + width :]


def _png(data: bytes, random: Random) -> bytes:
    parts, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    kinds = (b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"gAMA", b"cHRM", b"cICP", b"sRGB", b"tEXt", b"zTXt", b"iTXt")
    parts = _shuffled(parts, random, (*kinds, b"eXIf", b"acTL", b"fcTL", b"fdAT", b"pHYs", b"IEND"))
    whole = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    ]
    return data[:8] + b"".join(whole)


def _jpeg(data: bytes, random: Random) -> bytes:
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        name, (length,) = data[at : at + 2], struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        if name[1] == 0xDA:  # the scan takes its pixels with it
            following = data.find(b"\xff\xda", end)
            end = following if following >= 0 else max(end, len(data) - 2)
            parts.append((name + data[at + 2 : at + 4], data[at + 4 : end]))
        else:
            parts.append((name, data[at + 4 : end]))
        at = end
    kinds = [bytes((0xFF, each)) for each in (0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xC9)]
    parts = _shuffled(parts, random, kinds)
    whole = [
        name + body if len(name) == 4 else name + struct.pack(">H", min(65_535, len(body) + 2)) + body
        for name, body in parts
    ]
    return data[:2] + b"".join(whole) + b"\xff\xd9"


def _webp(data: bytes, random: Random) -> bytes:
    parts, at = [], 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        parts.append((name, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    kinds = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ", b"RIFF")
    parts = _shuffled(parts, random, kinds)
    whole = b"".join(name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for name, body in parts)
    return b"RIFF" + struct.pack("<I", len(whole) + 4) + b"WEBP" + whole


def _boxes(data: bytes, random: Random) -> bytes:
    parts, at = [], 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        length = max(8, length)
        body = data[at + 8 : at + length]
        if name == b"meta" and random.random() < 0.7:  # most of what a decoder believes is within
            body = body[:4] + _boxes(body[4:], random)
        elif name in (b"iprp", b"ipco", b"iinf", b"iref") and random.random() < 0.7:
            body = _boxes(body, random)
        parts.append((name, body))
        at += length
    kinds = (b"ftyp", b"meta", b"mdat", b"iloc", b"iinf", b"iprp", b"ipco", b"ipma", b"ispe", b"av1C", b"irot", b"colr")
    parts = _shuffled(parts, random, kinds, keep=1 if data[4:8] == b"ftyp" else 0)
    return b"".join(struct.pack(">I", len(body) + 8) + name + body for name, body in parts)


def _bmp(data: bytes, random: Random) -> bytes:
    head = bytearray(data[:54])
    at = int(random.choice([10, 14, 18, 22, 26, 28, 30, 34, 46]))
    number = NUMBERS[int(random.integers(len(NUMBERS)))]
    if at in (26, 28):
        struct.pack_into("<H", head, at, number % 65_536)
    else:
        struct.pack_into("<I", head, at, number)
    if random.random() < 0.3:
        struct.pack_into("<I", head, 30, int(random.integers(4)))  # how it is compressed
        return bytes(head) + random.bytes(int(random.integers(2000)))
    return bytes(head) + data[54:]


_TAGS = (254, 256, 257, 258, 259, 262, 270, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 34675)


def _tiff(data: bytes, random: Random) -> bytes:
    """One entry of the directory with another tag, type, count or value; or a directory after it, perhaps itself."""
    content = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    if at + 2 > len(data):
        return data
    (count,) = struct.unpack_from(order + "H", data, at)
    entry = at + 2 + 12 * int(random.integers(max(1, count)))
    if entry + 12 > len(data):
        return data
    number = NUMBERS[int(random.integers(len(NUMBERS)))]
    match random.integers(6):
        case 0:
            tags = (
                254,
                256,
                257,
                258,
                259,
                262,
                270,
                273,
                277,
                278,
                279,
                284,
                317,
                320,
                322,
                324,
                330,
                338,
                339,
                34675,
            )
            struct.pack_into(order + "H", content, entry, tags[int(random.integers(len(tags)))])
        case 1:
            struct.pack_into(order + "H", content, entry + 2, int(random.integers(20)))
        case 2:
            struct.pack_into(order + "I", content, entry + 4, number)
        case 3:
            struct.pack_into(order + "I", content, entry + 8, number)
        case 4:
            struct.pack_into(order + "H", content, entry + 8, number % 65_536)
        case _:
            after = at + 2 + 12 * count
            if after + 4 <= len(content):
                struct.pack_into(order + "I", content, after, int(random.choice([at, 8, len(data) - 6])))
    return bytes(content)


_HOW: dict[str, Callable[[bytes, Random], bytes]] = {
    "png": _png, "jpeg": _jpeg, "webp": _webp, "avif": _boxes, "bmp": _bmp, "tiff": _tiff,
}  # fmt: skip
