"""TIFFs of every depth and layout: the pixels that were written, or a refusal that names what the file is."""

import io
import re
import time
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukdetect import images
from leukdetect.formats import tiff_directory
from tests.leukdetect.formats.pictures import encoded, photograph, turned
from tests.leukdetect.formats.tiffs import Order, Page, tiff

HEIGHT, WIDTH = 53, 37
COLOURS = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 4), np.uint16)
GREY = COLOURS[..., 0]
UPPER = np.repeat(GREY[..., None] >> 8, 3, axis=2)
LAYOUTS = {
    "whole": {},
    "strips": {"rows": 7},
    "tiles": {"tile": (16, 16)},
    "deflated strips": {"rows": 7, "deflated": True, "differences": True},
    "deflated tiles": {"tile": (16, 16), "deflated": True, "differences": True},
}


def on_white(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(("order", "big", "apart"), list(product("<>", (False, True), (False, True))))
@pytest.mark.parametrize("depth", [8, 16])
def test_colours_however_they_lie_keep_their_upper_eight_bits(
    depth: int, order: Order, big: bool, apart: bool, layout: dict[str, Any]
) -> None:
    stored = COLOURS if depth == 16 else (COLOURS >> 8).astype(np.uint8)
    upper = (COLOURS >> 8).astype(np.uint8)
    plain = tiff(Page(stored[..., :3], apart=apart, **layout), order=order, big=big)
    np.testing.assert_array_equal(images.decode(plain), upper[..., :3])
    assert images.header(plain) == images.Header("TIFF", WIDTH, HEIGHT, "RGB")
    transparent = tiff(Page(stored, apart=apart, extra=[2], **layout), order=order, big=big)
    np.testing.assert_array_equal(images.decode(transparent), on_white(upper))
    multiplied = tiff(Page(stored, apart=apart, extra=[1], **layout), order=order, big=big)
    straight = Image.frombuffer("RGBa", (WIDTH, HEIGHT), upper.tobytes()).convert("RGBA")
    np.testing.assert_array_equal(images.decode(multiplied), on_white(np.asarray(straight)))
    spare = tiff(Page(stored, apart=apart, extra=[0], **layout), order=order, big=big)
    np.testing.assert_array_equal(images.decode(spare), upper[..., :3])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(("order", "apart"), list(product("<>", (False, True))))
@pytest.mark.parametrize("depth", [8, 16])
def test_grey_whose_white_is_zero_is_no_negative(depth: int, order: Order, apart: bool, layout: dict[str, Any]) -> None:
    stored = GREY if depth == 16 else (GREY >> 8).astype(np.uint8)
    data = tiff(Page(stored, photometric=0, apart=apart, **layout), order=order)
    np.testing.assert_array_equal(images.decode(data), 255 - UPPER)


def test_two_levels_in_one_plane_are_no_negative() -> None:
    ones = (GREY > 30000).astype(np.uint8)
    data = tiff(Page(ones, photometric=0, bits=1, apart=True))
    np.testing.assert_array_equal(np.asarray(images.decode(data))[..., 0], 255 * (1 - ones))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("layout", [{}, {"rows": 7}, {"tile": (16, 16)}, {"deflated": True}])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_samples_are_scaled(bits: int, layout: dict[str, Any], photometric: int) -> None:
    data = tiff(Page(GREY >> (16 - bits), bits=bits, photometric=photometric, **layout))
    np.testing.assert_array_equal(images.decode(data), UPPER if photometric else 255 - UPPER)


def stated(kind: str, bits: int) -> dict[int, tuple[int, Any]]:
    """The tags that say that this many bits of a sample are used."""
    if kind == "OME-TIFF":
        xml = f'<OME><Pixels SizeC="1" Type="uint16" SignificantBits="{bits}"/></OME>'
        return {270: (2, xml.encode() + b"\0")}
    return {{"MaxSampleValue": 281, "SMaxSampleValue": 341}[kind]: (4, 2**bits - 1)}


@pytest.mark.parametrize("kind", ["MaxSampleValue", "SMaxSampleValue", "OME-TIFF"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_depth_within_sixteen_bits_is_scaled_by_what_the_file_says(bits: int, order: Order, kind: str) -> None:
    data = tiff(Page(GREY >> (16 - bits), tags=stated(kind, bits)), order=order)
    np.testing.assert_array_equal(images.decode(data), UPPER)
    colours = tiff(Page(COLOURS[..., :3] >> (16 - bits), tags=stated(kind, bits)), order=order)
    np.testing.assert_array_equal(images.decode(colours), COLOURS[..., :3] >> 8)


def test_the_largest_value_of_a_whole_depth_is_a_statistic() -> None:
    for largest in (61234, 30000, 65535):
        np.testing.assert_array_equal(images.decode(tiff(Page(GREY, tags={281: (3, largest)}))), UPPER)
    dark = (GREY >> 11).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(images.decode(tiff(Page(dark, tags={281: (3, 31)}))))[..., 0], dark)


NUMBERS = {
    "uint32": (GREY.astype(np.uint32) << 16, {}),
    "uint32, stated": (GREY.astype(np.uint32), {341: (4, 65535)}),
    "int32, stated": (GREY.astype(np.int32), {341: (9, 65535)}),
    "int16, stated": ((GREY >> 1).astype(np.int16), {341: (8, 32767)}),
    "int16 of both signs, stated": (
        (GREY.astype(np.int32) - 32768).astype(np.int16),
        {340: (8, -32768), 341: (8, 32767)},
    ),
    "int16, by the other tag": ((GREY >> 4).astype(np.int16), {281: (3, 4095)}),
    "float32": ((GREY / 65535).astype(np.float32), {}),
    "float64": (GREY / 65535, {}),
    "float32, stated": ((GREY / 655.35).astype(np.float32), {340: (11, 0.0), 341: (11, 100.0)}),
}


@pytest.mark.parametrize(("numbers", "tags"), NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize(("order", "deflated"), list(product("<>", (False, True))))
def test_numbers_of_any_type_are_scaled_by_their_range(
    numbers: np.ndarray, tags: dict[int, tuple[int, Any]], order: Order, deflated: bool
) -> None:
    shown = np.asarray(images.decode(tiff(Page(numbers, tags=tags, deflated=deflated), order=order)))
    np.testing.assert_allclose(shown.astype(int), np.repeat((GREY / 257)[..., None], 3, axis=2), atol=1)


UNSTATED = {
    "12 bits in 16": (1, np.uint16, 4095, "16-bit numbers from 0 to 4095"),
    "12 bits in 16, colour": (3, np.uint16, 4095, "16-bit numbers from 0 to 4095"),
    "14 bits in 16": (1, np.uint16, 16383, "16-bit numbers from 0 to 16383"),
    "int16": (1, np.int16, 32767, "16-bit signed numbers from 0 to 32767"),
    "int32": (1, np.int32, 65535, "32-bit signed numbers from 0 to 65535"),
    "uint32": (1, np.uint32, 65535, "32-bit numbers from 0 to 65535"),
    "floats": (1, np.float32, 255, "floats from 0 to 255"),
    "small floats": (1, np.float32, 1 / 16, "floats from 0 to 0.0625"),
}


@pytest.mark.parametrize(("planes", "kind", "largest", "says"), UNSTATED.values(), ids=UNSTATED.keys())
def test_a_range_that_nobody_states_is_told_with_how_to_state_it(
    planes: int, kind: type[np.generic], largest: float, says: str
) -> None:
    samples = np.linspace(0, largest, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(kind).repeat(planes, axis=2)
    with pytest.raises(images.ImageError, match="MaxSampleValue") as refused:
        images.decode(tiff(Page(samples)))
    assert says in str(refused.value)


@pytest.mark.parametrize("extra", [[0], [2], [0, 2]])
def test_more_samples_than_colours_need_cost_no_answer(extra: list[int]) -> None:
    samples = np.concatenate([COLOURS >> 8, COLOURS >> 8], axis=2).astype(np.uint8)
    ink = tiff(Page(samples[..., : 4 + len(extra)], photometric=5, extra=extra))
    plain = tiff(Page(samples[..., :4], photometric=5))
    np.testing.assert_array_equal(images.decode(ink), images.decode(plain))
    bright = tiff(Page(np.concatenate([samples[..., :1], samples[..., :1]], axis=2), photometric=0, extra=[0]))
    np.testing.assert_array_equal(np.asarray(images.decode(bright))[..., 0], 255 - samples[..., 0])


def test_signed_numbers_below_zero_are_of_no_known_range() -> None:
    with pytest.raises(images.ImageError, match="8-bit signed numbers from -128 to 127"):
        images.decode(tiff(Page((GREY >> 8).astype(np.uint8).view(np.int8))))


def test_what_is_no_number_is_refused() -> None:
    floats = (GREY / 65535).astype(np.float32)
    floats[3, 3] = np.nan
    with pytest.raises(images.ImageError, match="not finite"):
        images.decode(tiff(Page(floats)))


def test_what_exceeds_its_range_is_white_and_does_not_wrap_round() -> None:
    values = np.array([[-5, 0, 65535, 70000]], np.int32)
    pixels = np.asarray(images.decode(tiff(Page(values, tags={341: (9, 65535)}))))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 255, 255])


@pytest.mark.parametrize("wide", [False, True])
def test_a_palette_may_have_eight_bits(wide: bool) -> None:
    palette = np.random.default_rng(2).integers(0, 256, (3, 256))
    index = (GREY >> 8).astype(np.uint8)
    entries = (palette * (257 if wide else 1)).reshape(-1).tolist()
    data = tiff(Page(index, photometric=3, tags={320: (3, entries)}))
    np.testing.assert_array_equal(images.decode(data), palette.T[index])


def grey_pages(description: bytes) -> bytes:
    first, *others = (Page((COLOURS[..., n] >> 8).astype(np.uint8)) for n in range(3))
    return tiff(replace(first, tags={270: (2, description + b"\0")} if description else {}), *others)


@pytest.mark.parametrize(
    "description",
    [
        b"ImageJ=1.54f\nimages=3\nchannels=3\nmode=composite\nloop=false\n",
        b'<?xml version="1.0"?><OME><Image><Pixels SizeC="3" Type="uint8"></Pixels></Image></OME>',
        b'{"axes": "CYX"}',
    ],
    ids=["ImageJ", "OME-TIFF", "tifffile"],
)
def test_channels_as_pages_are_no_grey_picture(description: bytes) -> None:
    with pytest.raises(images.ImageError, match="save it as one RGB page"):
        images.decode(grey_pages(description))


@pytest.mark.parametrize(
    "piece",
    [b"<Pixels ", b'<Pixels SizeC="', b'<a:Pixels SizeC="0', b"\nchannels=0", b'"axes": "C', b'<Pixels SizeC="000000'],
)
def test_a_long_description_is_searched_in_time_in_proportion(piece: bytes) -> None:
    def seconds(length: int) -> float:
        description = b"ImageJ=" + piece * (length // len(piece)) + b"0" * length
        begun = time.process_time()
        for pattern in tiff_directory._CHANNELS:
            re.search(pattern, description, re.DOTALL | re.MULTILINE)
        return time.process_time() - begun

    short, long = (min(seconds(length) for _ in range(3)) for length in (20_000, 320_000))
    assert long < 60 * max(short, 1e-4)  # 16 times as long; the square would be 256 times


@pytest.mark.parametrize(
    "description", [b"", b"ImageJ=1.54f\nimages=3\nslices=3\n", b'<OME><Pixels SizeC="1" SizeZ="3"/></OME>']
)
def test_of_a_stack_the_first_page_is_taken(description: bytes) -> None:
    np.testing.assert_array_equal(images.decode(grey_pages(description)), UPPER)


@pytest.mark.parametrize("tags", [{254: (4, 1)}, {255: (3, 2)}], ids=["NewSubfileType", "SubfileType"])
@pytest.mark.parametrize("big", [False, True])
def test_a_thumbnail_before_the_full_page_is_passed_over(big: bool, tags: dict[int, tuple[int, Any]]) -> None:
    upper = (COLOURS[..., :3] >> 8).astype(np.uint8)
    data = tiff(Page(upper[::4, ::4], tags=tags), Page(upper), big=big)
    np.testing.assert_array_equal(images.decode(data), upper)
    assert (images.header(data).width, images.header(data).height) == (WIDTH, HEIGHT)
    with pytest.raises(images.ImageError, match="thumbnails"):
        images.decode(tiff(Page(upper[::4, ::4], tags=tags), Page(upper[::2, ::2], tags=tags), big=big))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_orientation_is_applied_to_odd_kinds_too(deep: bool, orientation: int) -> None:
    plain = encoded(photograph(), "TIFF", exif=turned(orientation))
    pixels = np.asarray(photograph())
    data = tiff(Page(pixels * np.uint16(257), apart=True, tags={274: (3, orientation)})) if deep else plain
    expected = images.decode(encoded(photograph(), "PNG", exif=turned(orientation)))
    np.testing.assert_array_equal(images.decode(data), expected)
    assert (images.header(data).width, images.header(data).height) == expected.size


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (Page((COLOURS[..., :3] / 65535).astype(np.float32)), "colours of 32-bit floats"),
        (Page(COLOURS[..., :3].astype(np.uint32)), "colours of 32-bit integers"),
        (Page(GREY, tags={259: (3, 34712)}), "JPEG 2000"),
        (Page(GREY, tags={259: (3, 33003)}), "JPEG 2000"),
        (Page(GREY, tags={259: (3, 50002)}), "JPEG XL"),
        (Page(GREY >> 4, tags={259: (3, 7), 258: (3, 12)}), "a JPEG of 12 bits a sample"),
        (Page(GREY, photometric=6, tags={530: (3, [1, 1])}), "unknown layout .photometric interpretation 6"),
        (Page(GREY, photometric=32803), "a camera's raw data"),
        (Page(COLOURS[..., :3] >> 8, photometric=8), "CIELab"),
    ],
    ids=["float RGB", "32-bit RGB", "JPEG 2000", "Aperio", "JPEG XL", "12-bit JPEG", "16-bit YCbCr", "raw", "CIELab"],
)
def test_what_is_not_decoded_is_named(page: Page, says: str) -> None:
    for read in (images.header, images.decode):
        with pytest.raises(images.UnsupportedImage, match=says):
            read(tiff(page))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("apart", [False, True])
def test_missing_pixels_are_told_of(apart: bool, layout: dict[str, Any]) -> None:
    whole = tiff(Page(COLOURS[..., :3], apart=apart, **layout))
    strips, sizes = (324, 325) if "tile" in layout else (273, 279)
    missing: list[dict[int, tuple[int, Any]]] = [
        {strips: (4, [len(whole) + 9] * 64)},
        {strips: (4, []), sizes: (4, [])},
    ]
    for tags in missing:
        with pytest.raises(images.ImageError, match=r"corrupt|where all of its pixels|broken"):
            images.decode(tiff(Page(COLOURS[..., :3], apart=apart, tags=tags, **layout)))


def test_a_pillow_image_that_was_only_opened_is_read_as_its_file_is() -> None:
    data = tiff(Page(COLOURS[..., :3], apart=True))
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(images.upright(opened), images.decode(data))
    assert opened.size == (WIDTH, HEIGHT)
