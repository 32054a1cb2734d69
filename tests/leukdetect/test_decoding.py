"""From whatever holds an image to what the model sees: what is refused, and before a pixel is decoded."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukdetect import images
from leukdetect.apart import look
from leukdetect.decoding import TooLargeError, decode
from leukdetect.decoding import picture as opened
from tests import tiny_model


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(7000, 7000), (40_000, 10)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(TooLargeError, match=r"megapixels"):
        decode(png_that_claims(*size), 32, 40_000_000)


def picture(kind: str) -> bytes:
    """50 × 40 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), (120, 60, 160)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", images.FORMATS)
def test_every_kind_of_image_is_accepted(kind: str) -> None:
    decoded = decode(picture(kind), 32, 2000)
    assert (decoded.header.format, decoded.header.width, decoded.header.height) == (kind, 50, 40)
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.brightness == pytest.approx(0.299 * 120 + 0.587 * 60 + 0.114 * 160, abs=3)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_an_image_of_too_many_pixels_is_refused_before_one_is_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("a pixel was decoded"))
    with pytest.raises(TooLargeError):
        decode(picture(kind), 32, 1999)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", images.ImageError, "The file is empty."),
        (b"hello", images.UnsupportedImage, "The content is not an image of a known type"),
        (tiny_model.jpeg((200, 0, 0))[:300], images.ImageError, "The image's header is broken"),
        (png_that_claims(10, 10), images.ImageError, "The PNG data is truncated"),
    ],
    ids=["empty", "text", "truncated", "no pixels"],
)
def test_what_cannot_be_decoded_says_why_in_a_sentence(data: bytes, error: type[images.ImageError], says: str) -> None:
    with pytest.raises(error) as refused:
        decode(data, 32)
    assert type(refused.value) is error
    assert refused.value.sentence.startswith(says)
    assert refused.value.sentence.endswith(".")


def test_a_file_a_path_a_pillow_image_and_an_array_look_the_same(tmp_path: Path) -> None:
    data = picture("PNG")
    (tmp_path / "x.png").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    expected = decode(data, 32)
    sources: list[Any] = [data, bytearray(data), tmp_path / "x.png", str(tmp_path / "x.png"), image, np.asarray(image)]
    for source in sources:
        seen = look(source, 32)
        np.testing.assert_array_equal(seen.pixels, expected.pixels)
        assert (seen.brightness, seen.stain) == (expected.brightness, expected.stain)
        assert seen.sha256 in (None, expected.sha256)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        Image.new("F", (8, 8)),
        None,
        3,
    ],
    ids=["floats", "grey", "a batch", "alpha", "empty", "float image", "nothing", "a number"],
)
def test_what_is_no_image_is_refused_and_the_message_says_what_is_one(source: Any) -> None:
    with pytest.raises(images.ImageError, match=r"uint8 \[height, width, 3\]|0\.\.255"):
        look(source, 32)


def test_a_pillow_image_stays_as_it_is() -> None:
    image = Image.new("LA", (8, 6))
    assert opened(image).mode == "RGB"
    assert (image.mode, image.size) == ("LA", (8, 6))
