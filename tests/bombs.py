"""Image files that cost far more to decode than their size, or the size in their header, shows."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from tests import tiny_model

_PHOTOGRAPH = tiny_model.jpeg((140, 90, 160))


def saved(kind: str, size: tuple[int, int] = (3000, 2000), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 100).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", data: bytes | None = None, after: bytes = b"", head: bytes | None = None) -> bytes:
    """An 8-bit grey PNG of 1000 × 1000 pixels with further chunks before and after its data."""
    head = struct.pack(">IIBBBBB", 1000, 1000, 8, 0, 0, 0, 0) if head is None else head
    data = png_chunk(b"IDAT", zlib.compress(bytes(1001 * 1000))) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + before + data + after + png_chunk(b"IEND")


def png_of_profiles(count: int) -> bytes:
    return png(before=count * png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_000_000))))


def png_of_texts(count: int) -> bytes:
    return png(before=count * png_chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(60_000))))


def png_of_empty_chunks(count: int) -> bytes:
    return png(before=count * png_chunk(b"teSt"))


def png_of_empty_chunks_at_the_end(count: int) -> bytes:
    return png(after=count * png_chunk(b"teSt"))


def png_interlaced_in_bytes(side: int) -> bytes:
    packed = zlib.compress(bytes(2 * side * side), 0)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 1)
    return png(head=head, data=b"".join(png_chunk(b"IDAT", packed[at : at + 1]) for at in range(len(packed))))


def png_animated(count: int) -> bytes:
    control = png_chunk(b"acTL", struct.pack(">II", count, 0))
    frame = struct.pack(">IIIIIHHBB", 0, 1000, 1000, 0, 0, 1, 1, 0, 0)
    return png(before=control + png_chunk(b"fcTL", frame), after=count * png_chunk(b"fdAT", bytes(4)))


def jpeg_of_scans(count: int, **options: Any) -> bytes:
    """A JPEG whose first scan's head is repeated, without data."""
    data = saved("JPEG", **options)
    at = data.index(b"\xff\xda")
    return data[:at] + count * data[at : at + 2 + data[at + 3]] + data[at:]


def jpeg_arithmetic_of_scans(count: int) -> bytes:
    data = jpeg_of_scans(count, progressive=True)
    return data.replace(b"\xff\xc2", b"\xff\xca", 1)


def jpeg_of_markers(marker: bytes, count: int, content: bytes = b"") -> bytes:
    segment = marker + struct.pack(">H", 2 + len(content)) + content
    return _PHOTOGRAPH[:2] + count * segment + _PHOTOGRAPH[2:]


def jpeg_of_directories(count: int) -> bytes:
    """EXIF in many segments, which are read as one: a directory of as many tags as it may have."""
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, 1) for tag in range(65_535))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + tags + bytes(4)
    parts = [exif[at : at + 60_000] for at in range(0, len(exif), 60_000)]
    segments = (b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + b"Exif\0\0" + part for part in parts)
    return _PHOTOGRAPH[:2] + count * b"".join(segments) + _PHOTOGRAPH[2:]


def bmp_of_runs(width: int, height: int) -> bytes:
    """Runs of one pixel each, which Pillow unpacks in Python."""
    body = width * height * b"\1\7"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return struct.pack("<2sIII", b"BM", 54 + 1024 + len(body), 0, 54 + 1024) + head + bytes(1024) + body


def tiff_of_tags(count: int) -> bytes:
    """A BigTIFF whose directory has many tags."""
    sides = [(256, 4, 1, 1000), (257, 4, 1, 1000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags = sides + [(60_000, 4, 1, 0)] * count
    directory = struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", *tag) for tag in tags) + bytes(8)
    return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + directory


def tiff_of_strips(count: int) -> bytes:
    sides = [(256, 4, 1, 1000), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    at = 8 + 2 + 12 * 8 + 4
    tags = [*sides, (273, 4, count, at), (278, 3, 1, 1), (279, 4, count, at)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + count * struct.pack("<I", 8)


def tiff_of_directories(count: int) -> bytes:
    """Sub-directories, one after the other, behind an ordinary picture's directory."""
    tags = [(256, 4, 1, 1000), (257, 4, 1, 1000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(278, 4, 1, 1000), (279, 4, 1, 1_000_000), (34665, 4, 1, 8)]
    head = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    chain = b"".join(struct.pack("<HI", 0, 8 + len(head) + 4 + 6 * (index + 1)) for index in range(count))
    return b"II*\0\x08\0\0\0" + head + struct.pack("<I", 8 + len(head) + 4) + chain + bytes(1_000_000)


def tiff_of_pages(count: int) -> bytes:
    """Further pages behind an ordinary one, each of them empty."""
    one = saved("TIFF", (1000, 1000), "L")
    (at,) = struct.unpack_from("<I", one, 4)
    (tags,) = struct.unpack_from("<H", one, at)
    last = at + 2 + 12 * tags
    chain = b"".join(struct.pack("<HI", 0, len(one) + 6 * (index + 1)) for index in range(count))
    return one[:last] + struct.pack("<I", len(one)) + one[last + 4 :] + chain + bytes(6)


def tiff_of_a_description(count: int) -> bytes:
    """Words that a search for the axes' names goes over again and again."""
    return saved("TIFF", (1000, 1000), "L", description='"axes": "' + "C" * count)


def webp_of_frames(count: int) -> bytes:
    picture = saved("WEBP", (16, 16))[12:]
    still = struct.pack("<3s3s3s3s3sB", bytes(3), bytes(3), b"\x0f\0\0", b"\x0f\0\0", b"\1\0\0", 0) + picture
    frame = b"ANMF" + struct.pack("<I", len(still)) + still
    side = (3999).to_bytes(3, "little")
    head = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + side + side + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    body = b"WEBP" + head + count * frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Each is a fault of its own kind; the first six were seen to keep a processor busy for 9 to 48 s.
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG, profiles": lambda: png_of_profiles(3_000),
    "JPEG, baseline, scans": lambda: jpeg_of_scans(4_000),
    "JPEG, comments": lambda: jpeg_of_markers(b"\xff\xfe", 4_900_000),
    "JPEG, applications": lambda: jpeg_of_markers(b"\xff\xee", 4_900_000),
    "BMP, runs": lambda: bmp_of_runs(3000, 3000),
    "PNG, empty chunks": lambda: png_of_empty_chunks(1_600_000),
    "PNG, empty chunks at the end": lambda: png_of_empty_chunks_at_the_end(1_600_000),
    "PNG, texts": lambda: png_of_texts(20_000),
    "PNG, interlaced, a byte a chunk": lambda: png_interlaced_in_bytes(900),
    "PNG, animated": lambda: png_animated(500_000),
    "JPEG, progressive, scans": lambda: jpeg_of_scans(4_000, progressive=True),
    "JPEG, grey, scans": lambda: jpeg_of_scans(4_000, mode="L"),
    "JPEG, arithmetic, scans": lambda: jpeg_arithmetic_of_scans(4_000),
    "JPEG, padding": lambda: _PHOTOGRAPH[:2] + b"\xff" * 19_000_000 + _PHOTOGRAPH[2:],
    "JPEG, EXIF": lambda: jpeg_of_directories(10),
    "BigTIFF, tags": lambda: tiff_of_tags(900_000),
    "TIFF, strips": lambda: tiff_of_strips(32_000),
    "TIFF, directories": lambda: tiff_of_directories(1_000_000),
    "TIFF, LZMA": lambda: saved("TIFF", compression="lzma"),
    "TIFF, pages": lambda: tiff_of_pages(200_000),
    "TIFF, description": lambda: tiff_of_a_description(200_000),
    "AVIF": lambda: saved("AVIF", (4000, 3000), speed=10),
    "WebP, frames": lambda: webp_of_frames(150_000),
    "WebP, lossless": lambda: saved("WEBP", (4000, 4000), lossless=True, method=0),
    "PNG, pixels": lambda: saved("PNG", (8000, 5000), "RGBA", compress_level=1),
}
