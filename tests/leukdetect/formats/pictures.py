"""Pictures and files that the formats' tests share."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def photograph(width: int = 101, height: int = 67) -> Image.Image:
    """Smooth colours and an edge or two, as a smear has, of odd sides, so that chroma blocks are cut."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 90 * np.sin(x / 11 + k) * np.cos(y / (7 + k)) + 30 * (x > width // 2) for k in range(3)]
    return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how the image is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_exif_beyond_pillow(jpeg: bytes) -> bytes:
    """The JPEG with orientation 6 and Software (305) as a RATIONAL, which Pillow reads and cannot write again."""
    entries = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\x01\x31\0\x05\0\0\0\x01\0\0\0\x26"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + entries + bytes(4) + b"\0\0\0\x01\0\0\0\x02"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + jpeg[2:]


def png(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of uint8 or uint16 grey [H, W] or colour [H, W, 3], with these chunks; Pillow writes no 16-bit colour."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, pixels.dtype.itemsize * 8, 2 * (pixels.ndim == 3), 0, 0, 0)
    inner = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in inner
    )
