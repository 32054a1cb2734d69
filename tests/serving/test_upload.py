"""The header look: what is refused before a pixel is decoded."""

import io
import struct
import zlib

import pytest
from PIL import Image

from serving import upload
from serving.decoding import decode
from serving.problems import ProblemError
from tests import tiny_model


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(7000, 7000), (40_000, 10)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(ProblemError, match=r"megapixels") as refused:
        upload.check(png_that_claims(*size), 40_000_000)
    assert (refused.value.status, refused.value.code) == (413, "too-many-pixels")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "broken-image"),
        (b"hello", 415, "unsupported-image"),
        (tiny_model.jpeg((200, 0, 0))[:300], 422, "broken-image"),
        (png_that_claims(10, 10), 422, "broken-image"),
    ],
    ids=["empty", "text", "truncated", "no pixels"],
)
def test_what_cannot_be_decoded_has_a_status_that_says_why(data: bytes, status: int, code: str) -> None:
    with pytest.raises(ProblemError) as refused:
        decode(data, 32, 40_000_000)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert refused.value.detail.endswith(".")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_every_kind_of_image_is_accepted(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), (120, 60, 160)).save(buffer, kind)
    decoded = decode(buffer.getvalue(), 32, 2000)
    assert (decoded.header.format, decoded.header.width, decoded.header.height) == (kind, 50, 40)
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.brightness == pytest.approx(0.299 * 120 + 0.587 * 60 + 0.114 * 160, abs=3)
