"""Kinds that are not decoded are named, with what to do."""

import pytest

from leukdetect import images
from tests.leukdetect.formats.jpegs import flat_blocks
from tests.leukdetect.formats.pictures import encoded, photograph


def boxed(*brands: bytes) -> bytes:
    """The head of an ISO base media file."""
    return (8 + 4 * (len(brands) + 1)).to_bytes(4) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:]) + bytes(200)


def precise(bits: int) -> bytes:
    """A JPEG that claims so many bits a sample."""
    data = flat_blocks(16, 16, [(1, 1)] * 3)
    at = data.index(b"\xff\xc0") + 4
    return data[:at] + bytes((bits,)) + data[at + 1 :]


HIERARCHICAL = flat_blocks(16, 16, [(1, 1)] * 3).replace(b"\xff\xc0", b"\xff\xc5")
NAMED = {
    "GIF": (encoded(photograph().quantize(16), "GIF"), "a GIF"),
    "HEIC": (boxed(b"heic", b"mif1", b"heic"), "HEIC.* Most Compatible"),
    "HEIC by a general brand": (boxed(b"mif1", b"miaf", b"heix"), "HEIC"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "JPEG XL"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
    "JPEG 2000": (encoded(photograph(), "JPEG2000"), "JPEG 2000"),
    "JPEG 2000, bare": (encoded(photograph(), "JPEG2000", no_jp2=True), "JPEG 2000"),
    "DICOM": (bytes(128) + b"DICM" + bytes(99), "a DICOM file"),
    "12-bit JPEG": (precise(12), "a JPEG of 12 bits a sample"),
    "JPEG-LS": (HIERARCHICAL.replace(b"\xff\xc5", b"\xff\xf7"), "JPEG-LS"),
    "PDF": (b"%PDF-1.7\n" + bytes(99), "a PDF"),
    "ZIP": (b"PK\x03\x04" + bytes(99), "a ZIP archive"),
    "web page": (b"\n<!DOCTYPE html><title>503</title>", "a web page"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG"),
    "raw": (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "the TIFF|broken|raw"),
    "Zeiss": (b"ZISRAWFILE" + bytes(99), "a Zeiss CZI file"),
}


def test_a_jpeg_of_another_process_is_named_once_its_pixels_are_asked_for() -> None:
    with pytest.raises(images.UnsupportedImage, match="hierarchical JPEG"):
        images.decode(HIERARCHICAL)


@pytest.mark.parametrize(("data", "named"), NAMED.values(), ids=NAMED.keys())
def test_a_kind_that_is_not_decoded_is_named(data: bytes, named: str) -> None:
    for read in (images.header, images.decode):
        with pytest.raises(images.ImageError, match=named) as refused:
            read(data)
        if "raw" not in named:
            assert isinstance(refused.value, images.UnsupportedImage)
            assert "send JPEG, PNG, BMP, TIFF, WEBP" in str(refused.value)
