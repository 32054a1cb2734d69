"""Whether a file's decoding is surely cheap, from a look at its structure that takes microseconds.

A few bytes can ask a decoder for minutes: scans without data, millions of empty chunks, compressed profiles. What this
look proves is bounded by about half a second and 160 MB, and may be decoded at once; the rest goes to `apart`, whose
process has a budget. So the look errs on one side only: what it does not know, it does not pass.
"""

import struct

import numpy as np

PIXELS = 13_500_000  # a microscope camera's 12 megapixels, with room
TRANSPARENT_PIXELS = 4_000_000  # and grey ones of 16 bits and the like
CODED_PIXELS = 262_144  # of lossless WebP
OPAQUE, TRANSPARENT, CODED = 12, 24, 792  # bytes each: turned; laid over white; with 12 kB of table for every 16
_BESIDE = 4_000_000  # bytes that do not depend on the pixels
SCANNED_PIXELS = 150_000_000  # of a JPEG, once a scan; each scan goes over all of them, in about a nanosecond
SCAN = 10_000  # what beginning a scan costs, in such pixels
PARTS = 40  # segments, chunks or tags around the pixels; a camera's file has some twenty
BLOCK = 65_536  # bytes of EXIF; a tag takes twelve, and some microseconds
STRIPS = 4_096  # of a TIFF: Pillow's list of them takes microseconds each
IDAT_BYTES = 4_096  # of PNG data for each chunk; encoders write 8 kB or more in each


def ordinary(data: bytes) -> bool:
    """Whether decoding the file is surely cheap. A file of no known type is: nothing will decode it."""
    return memory(data) is not None


def memory(data: bytes) -> int | None:
    """The bytes of memory that decoding an `ordinary` file takes at most; None where it is none."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"BM"):
            return _bmp(data)
        if data[:2] in (b"II", b"MM"):
            return _tiff(data)
        if data.startswith(b"RIFF"):
            return _webp(data)
        return 0 if b"avi" not in data[4:64] else None  # AVIF, whose parts may refer to each other
    except (struct.error, IndexError):  # it ends too early, which some decoders forgive
        return None


def _within(pixels: int, bytes_each: int, most: int) -> int | None:
    """The memory of so many pixels, if they are at most `most`."""
    return _BESIDE + bytes_each * pixels if pixels <= most else None


def scans(data: bytes) -> int:
    """How often the marker that begins a JPEG's scan occurs: once a scan, also of thumbnails and further pictures.

    Inside pixel data 0xff is never followed by its second byte. NumPy finds it ten times as fast as bytes.count.
    """
    even = np.frombuffer(data, "<u2", len(data) // 2)
    odd = np.frombuffer(data, "<u2", (len(data) - 1) // 2, 1) if len(data) > 2 else even[:0]
    return int(np.count_nonzero(even == 0xDAFF)) + int(np.count_nonzero(odd == 0xDAFF))


def _jpeg(data: bytes) -> int | None:
    at, pixels, most, each = 2, 0, 0, 0
    for _ in range(PARTS):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xDA:
            few = pixels and (pixels + SCAN) * scans(data) <= SCANNED_PIXELS
            return _within(pixels, each, most) if few else None
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive; arithmetic coding is slow
            height, width = struct.unpack_from(">HH", data, at + 5)
            if pixels:
                return None
            pixels = width * height
            most, each = (PIXELS, OPAQUE) if data[at + 9] <= 3 else (TRANSPARENT_PIXELS, TRANSPARENT)
        elif not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None  # tables, comments, applications': all that a camera's file has
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _png(data: bytes) -> int | None:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    few = PARTS + len(data) // IDAT_BYTES
    at, others, small = 8, 0, colour in (4, 6) or depth == 16
    for _ in range(few):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind != b"IDAT":
            others += 1
            small = small or kind == b"tRNS"
            if others > PARTS or kind == b"acTL" or (kind == b"eXIf" and length > BLOCK):
                return None
        elif not length:
            return None
        at += 12 + length
        if kind == b"IEND" or at >= len(data):  # a file that was cut off is refused soon
            return _transparent(width * height) if small else _within(width * height, OPAQUE, PIXELS)
    return None


def _transparent(pixels: int) -> int | None:
    return _within(pixels, TRANSPARENT, TRANSPARENT_PIXELS)


def _bmp(data: bytes) -> int | None:
    (head,) = struct.unpack_from("<I", data, 14)
    if head == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    # The others are compressed by runs, which Pillow unpacks in Python.
    if compression not in (0, 3):
        return None
    pixels = abs(width * height)
    return _transparent(pixels) if bits == 32 else _within(pixels, OPAQUE, PIXELS)


def _tiff(data: bytes) -> int | None:
    order = "<" if data[:2] == b"II" else ">"
    version, at = struct.unpack_from(order + "HI", data, 2)
    (count,) = struct.unpack_from(order + "H", data, at)
    end = at + 2 + 12 * count
    if version != 42 or count > PARTS or any(data[end : end + 4]):  # BigTIFF; further pages
        return None
    found = {}
    for index in range(count):
        tag, kind, many, value = struct.unpack_from(order + "HHI4s", data, at + 2 + 12 * index)
        if many > (_SOME if tag == _DESCRIPTION else STRIPS if tag < 400 else len(data)) or tag in _FURTHER:
            return None
        found[tag] = (many, struct.unpack(order + ("H2x" if kind == 3 and many <= 2 else "I"), value)[0])
    width, height = (found.get(tag, (1, 0))[1] for tag in (256, 257))
    if found.get(259, (1, 1))[1] not in (1, 5, 8, 32773, 32946):  # none, LZW, deflate, runs
        return None
    samples, (depths, bits) = found.get(277, (1, 1))[1], found.get(258, (1, 1))
    if depths == 3:  # too long for its entry, which says where it is
        bits = max(struct.unpack_from(order + "3H", data, bits))
    few = samples <= 3 and bits <= 8
    return _within(width * height, OPAQUE, PIXELS) if few else _transparent(width * height)


_DESCRIPTION, _SOME = 270, 4_096  # a text that is searched by patterns, and how long it may be
_FURTHER = frozenset({330, 347, 34665, 34853, 40965})  # further directories, and JPEG's tables


def _webp(data: bytes) -> int | None:
    at, alpha, canvas = 12, False, 0
    for _ in range(PARTS):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if kind == b"VP8X":
            flags, wide, high = struct.unpack("<B3x3s3s", data[body : body + 10])
            alpha = bool(flags & 0x10)
            canvas = (int.from_bytes(wide, "little") + 1) * (int.from_bytes(high, "little") + 1)
        elif kind in (b"ANIM", b"ANMF"):
            return None
        elif kind == b"ALPH":
            alpha = True
        elif kind in (b"VP8 ", b"VP8L"):
            if kind == b"VP8 ":
                width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
            else:
                (sides,) = struct.unpack_from("<I", data, body + 1)
                width, height = (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
            if len(data) - body - length > 2 * BLOCK:  # its EXIF and XMP come after the picture
                return None
            pixels = max(canvas, width * height)
            coded = alpha or kind == b"VP8L"
            return _within(pixels, CODED, CODED_PIXELS) if coded else _transparent(pixels)  # opaque ones take as much
        at = body + length + length % 2
    return None
