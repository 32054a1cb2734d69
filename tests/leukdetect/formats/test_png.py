"""PNG: the transparent colour at every depth, as Chromium shows it, and 16 bits that hold fewer."""

import struct
import zlib

import numpy as np
import pytest

from leukdetect import images
from tests.leukdetect.formats.pictures import png

VALUES = np.linspace(0, 65535, 16).astype(np.uint16)
VALUES[4] = VALUES[3] + 1  # of the same upper 8 bits as the one before it


def test_the_transparent_one_of_sixteen_bit_grey_is_white_and_no_other() -> None:
    shown = np.asarray(images.decode(png(VALUES[None], (b"tRNS", struct.pack(">H", VALUES[3])))))
    expected = VALUES >> 8
    expected[3] = 255
    np.testing.assert_array_equal(shown[0], expected[:, None].repeat(3, 1))


def test_the_transparent_one_of_sixteen_bit_colours_is_white_and_no_other() -> None:
    pixels = np.stack([VALUES, VALUES[::-1], VALUES], -1)[None]
    pixels[0, 4] = pixels[0, 3]
    pixels[0, 4, 2] += 1
    shown = np.asarray(images.decode(png(pixels, (b"tRNS", struct.pack(">3H", *pixels[0, 3])))))
    expected = pixels >> 8
    expected[0, 3] = 255
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_one_of_few_greys_is_white(bits: int) -> None:
    for clear in range(0, 2**bits, max(1, 2**bits // 16)):
        levels = np.arange(2**bits, dtype=np.uint8)
        ones = (levels[:, None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(ones.reshape(1, -1), axis=1)
        whole = png(packed, (b"tRNS", struct.pack(">H", clear)))
        head = struct.pack(">IIBBBBB", len(levels), 1, bits, 0, 0, 0, 0)
        data = with_header(whole, head)
        shown = np.asarray(images.decode(data))[0, :, 0].astype(int)
        expected = levels.astype(int) * 255 // (2**bits - 1)
        expected[clear] = 255
        np.testing.assert_array_equal(shown, expected)


def with_header(data: bytes, head: bytes) -> bytes:
    return data[:16] + head + zlib.crc32(b"IHDR" + head).to_bytes(4) + data[33:]


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("largest", [4095, 16383])
def test_sixteen_bits_that_hold_fewer_are_refused_with_their_range(largest: int, planes: int) -> None:
    values = np.linspace(0, largest, 50).astype(np.uint16)[None]
    pixels = values if planes == 1 else np.stack([values] * 3, -1)
    with pytest.raises(images.ImageError, match=rf"16-bit numbers (from 0 to {largest}|below {largest + 1})"):
        images.decode(png(pixels))
