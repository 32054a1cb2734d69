"""JPEGs of odd markers and samplings: one rule whichever way they are turned, and the very pixels of Pillow."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from leukdetect import images
from leukdetect.formats import jpeg
from tests.leukdetect.formats.jpegs import flat_blocks
from tests.leukdetect.formats.pictures import encoded, photograph, turned, with_exif_beyond_pillow

TURNS = (1, 3, 6)
MODES = ("RGB", "L", "CMYK")


def shown_by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def odd(data: bytes, oddity: str) -> bytes:
    """The JPEG as some camera writes it."""
    scan = data.index(b"\xff\xda")
    if oddity == "scan header of 0 to 0":
        end = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4])
        return data[: end - 3] + b"\0\0\0" + data[end:]
    if oddity == "junk before the end":
        return data[:-2] + b"\x12\x34junk" + data[-2:]
    if oddity == "a version of JFIF to come":
        return data.replace(b"JFIF\0\1", b"JFIF\0\7")
    if oddity in ("no end", "zeros in place of an end"):
        return data[:-2] + bytes(40 * (oddity != "no end"))
    marker = {"junk before the tables": b"\xff\xdb", "junk before the scan": b"\xff\xda"}[oddity]
    at = data.index(marker)
    return data[:at] + b"junk" + data[at:]


ODDITIES = (
    "a version of JFIF to come",
    "scan header of 0 to 0",
    "junk before the end",
    "junk before the tables",
    "junk before the scan",
    "no end",
    "zeros in place of an end",
)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("oddity", ODDITIES)
def test_odd_markers_change_no_pixel(oddity: str, mode: str, orientation: int) -> None:
    plain = encoded(photograph().convert(mode), "JPEG", exif=turned(orientation))
    data = odd(plain, oddity)
    np.testing.assert_array_equal(images.decode(data), shown_by_pillow(plain))


def test_several_oddities_at_once_change_no_pixel() -> None:
    data = plain = encoded(photograph(), "JPEG")
    for oddity in ODDITIES:
        data = odd(data, oddity)
    np.testing.assert_array_equal(images.decode(data), shown_by_pillow(plain))


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}], ids=["scan", "restart"])
def test_junk_before_a_marker_between_pixels_changes_none(options: dict[str, Any]) -> None:
    plain = encoded(photograph(), "JPEG", **options)
    at = plain.rindex(b"\xff\xda") if "progressive" in options else plain.index(b"\xff\xd0")
    np.testing.assert_array_equal(images.decode(plain[:at] + b"\x11\x22" + plain[at:]), shown_by_pillow(plain))


SAMPLINGS = {
    "4:1:0": [(4, 2), (1, 1), (1, 1)],
    "4×1 and 2×1": [(4, 1), (2, 1), (2, 1)],
    "3×1": [(3, 1), (1, 1), (1, 1)],
    "1×3": [(1, 3), (1, 1), (1, 1)],
    "2×4": [(2, 4), (1, 1), (1, 1)],
    "colour finer than light": [(1, 1), (2, 2), (2, 2)],
    "4:2:0": [(2, 2), (1, 1), (1, 1)],
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("orientation", TURNS)
def test_every_sampling_is_shown(sampling: list[tuple[int, int]], orientation: int) -> None:
    data = flat_blocks(61, 53, sampling)
    data = (
        data[:2]
        + b"\xff\xe1"
        + (len(turned(orientation).tobytes()) + 2).to_bytes(2)
        + turned(orientation).tobytes()
        + data[2:]
    )
    expected = shown_by_pillow(data)
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(images.decode(data), expected)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("mode", MODES)
def test_damaged_pixels_are_refused_whichever_way_the_image_is_turned(mode: str, orientation: int) -> None:
    whole = encoded(photograph().convert(mode), "JPEG", exif=turned(orientation), quality=90)
    middle = len(whole) - 400
    for damaged in (
        whole[:middle],
        whole[:middle] + b"\xff\xd9",
        odd(whole[:middle] + b"\xff\xd9", "junk before the scan"),
    ):
        with pytest.raises(images.ImageError, match="truncated or corrupt"):
            images.decode(damaged)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_of_endless_scans_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a few bytes, and costs a look at every pixel."""
    whole = encoded(photograph().convert(mode), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    bomb = whole[:last] + whole[last:-2] * 100 + whole[-2:]
    monkeypatch.setattr(jpeg, "MAX_SCANNED_PIXELS", 50 * 101 * 67)
    with pytest.raises(images.ImageError, match=r"in 1\d\d scans"):
        images.decode(bomb)
    assert images.decode(whole).size == (101, 67)


def test_a_coding_in_which_scans_may_be_empty_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "MAX_SCANNED_PIXELS", 0)
    data = encoded(photograph(), "JPEG")
    frame = data.index(b"\xff\xc0")
    assert images.decode(data).size == (101, 67)  # of Huffman's, in one scan, none is counted
    with pytest.raises(images.ImageError, match="in 1 scans"):
        images.decode(data[:frame] + b"\xff\xc9" + data[frame + 2 :])


def test_exif_that_pillow_cannot_write_again_is_no_fault_of_the_image() -> None:
    """Turning the image used to write its EXIF anew, and ended with a traceback."""
    plain = encoded(photograph(), "JPEG")
    data = with_exif_beyond_pillow(plain)
    with pytest.raises(AttributeError, match="encode"):  # or nothing would be shown here
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(images.decode(data), np.rot90(shown_by_pillow(plain), -1))


@pytest.mark.parametrize("raised", [AttributeError("no such thing"), RecursionError("too deep"), zlib.error()])
def test_whatever_a_decoder_raises_is_the_images_fault(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr(jpeg, "decode", fails)
    with pytest.raises(images.ImageError, match="the JPEG data is truncated or corrupt"):
        images.decode(encoded(photograph(), "JPEG"))
