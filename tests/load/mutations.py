"""Image files of every kind that is accepted, and what bad disks, bad lines and bad people make of them."""

import io

import numpy as np
from PIL import Image

from tests import tiny_model


def _saved(kind: str, mode: str, **options: object) -> bytes:
    with Image.open(io.BytesIO(tiny_model.jpeg((140, 90, 160)))) as image:
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


SEEDS = {
    "jpeg": tiny_model.jpeg((140, 90, 160)),
    "jpeg, progressive": _saved("JPEG", "RGB", progressive=True),
    "jpeg, grey": _saved("JPEG", "L"),
    "jpeg, CMYK": _saved("JPEG", "CMYK"),
    "png": _saved("PNG", "RGB"),
    "png, alpha": _saved("PNG", "RGBA"),
    "png, palette": _saved("PNG", "P"),
    "png, 16 bit": _saved("PNG", "I;16"),
    "bmp": _saved("BMP", "RGB"),
    "tiff": _saved("TIFF", "RGB"),
    "tiff, lzw": _saved("TIFF", "RGB", compression="tiff_lzw"),
    "tiff, deflate": _saved("TIFF", "RGB", compression="tiff_deflate"),
    "avif": _saved("AVIF", "RGB"),
    "webp": _saved("WEBP", "RGB"),
    "webp, lossless": _saved("WEBP", "RGBA", lossless=True),
}


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """One to five faults: bits flipped, bytes set to extremes, pieces cut out, doubled, zeroed or cut off."""
    content = bytearray(data)
    for _ in range(random.integers(1, 6)):
        if not content:
            break
        # Half of the faults lie in the header, where sizes and offsets are.
        reach = min(64, len(content)) if random.random() < 0.5 else len(content)
        at = int(random.integers(reach))
        length = int(random.integers(1, 33))
        match random.integers(6):
            case 0:
                content[at] ^= 1 << int(random.integers(8))
            case 1:
                content[at : at + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"][random.integers(3)]
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at : at + length] = bytes(len(content[at : at + length]))
            case _:
                del content[at:]
    return bytes(content)
