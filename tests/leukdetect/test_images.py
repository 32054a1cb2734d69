"""The one decoder: what it makes of every kind of image that a microscope, a viewer or an attacker may send."""

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, ImageSequence

from leukdetect import apart, images
from tests.leukdetect.formats import icc
from tests.leukdetect.formats.pictures import encoded, photograph, png, turned
from tests.leukdetect.formats.tiffs import Page, tiff

JPEGS = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:0, coarse": {"subsampling": "4:2:0", "quality": 15},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS.keys())
@pytest.mark.parametrize("size", [(101, 67), (8, 8), (1, 1), (224, 224)])
def test_a_jpeg_decodes_to_the_very_bits_of_pillow(options: dict[str, Any], size: tuple[int, int]) -> None:
    data = encoded(photograph(*size), "JPEG", **options)
    np.testing.assert_array_equal(images.decode(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_grey_jpeg_is_repeated_in_three_channels() -> None:
    data = encoded(photograph().convert("L"), "JPEG")
    grey = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(images.decode(data), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    data = encoded(photograph(), "JPEG", exif=turned(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(images.decode(data), upright)
    assert images.decode(data).size == ((67, 101) if orientation >= 5 else (101, 67))


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what is to be done to pixels stored so (EXIF, tag 0x0112)
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_whatever_the_type(kind: str, orientation: int) -> None:
    data = encoded(photograph(), kind, exif=turned(orientation), lossless=True)
    np.testing.assert_array_equal(images.decode(data), UPRIGHT[orientation](np.asarray(photograph())))


def test_cmyk_is_converted() -> None:
    data = encoded(photograph().convert("CMYK"), "JPEG", quality=95)
    difference = np.abs(np.asarray(images.decode(data), float) - np.asarray(photograph(), float))
    assert difference.mean() < 4  # a wrong inversion would be near 100


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_sixteen_bit_grey_keeps_its_upper_eight(kind: str, order: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], f"{order}u2")
    pixels = np.asarray(images.decode(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0, 1], [128, 254, 255]])
    assert pixels.shape == (2, 3, 3)


def test_sixteen_bit_colour_of_a_png_keeps_its_upper_eight() -> None:
    pixels = np.array([[[0, 255, 256], [32768, 65279, 65535]]], np.uint16)
    np.testing.assert_array_equal(images.decode(png(pixels)), pixels >> 8)


def test_a_palette_gives_its_colours() -> None:
    image = photograph().quantize(16)
    np.testing.assert_array_equal(images.decode(encoded(image, "PNG")), image.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_becomes_white(kind: str) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    pixels = np.asarray(images.decode(encoded(image, kind, lossless=True)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [200, 0, 0]


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(images.decode(encoded(image, "PNG", transparency=0)))
    assert pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    data = encoded(
        Image.new("RGB", (5, 5), "red"), kind, save_all=True, append_images=[Image.new("RGB", (5, 5))], lossless=True
    )
    with Image.open(io.BytesIO(data)) as opened:
        assert len(ImageSequence.all_frames(opened)) == 2
    assert images.decode(data).getpixel((0, 0)) == (255, 0, 0)


def test_of_the_pictures_in_a_phones_jpeg_the_first_is_taken() -> None:
    data = encoded(photograph(), "MPO", save_all=True, append_images=[Image.new("RGB", (50, 40))])
    np.testing.assert_array_equal(images.decode(data), images.decode(encoded(photograph(), "JPEG")))
    assert images.header(data).format == "JPEG"


@pytest.mark.parametrize("kind", images.FORMATS)
def test_the_header_alone_tells_type_and_size(kind: str) -> None:
    header = images.header(encoded(photograph(), kind)[:4096])
    assert (header.format, header.width, header.height) == (kind, 101, 67)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_half_a_file_is_an_error_that_names_its_type(kind: str) -> None:
    whole = encoded(photograph(), kind)
    with pytest.raises(images.ImageError, match=r"corrupt|broken") as error:
        images.decode(whole[: len(whole) // 2])
    assert not isinstance(error.value, images.UnsupportedImage)


def tiff_of_one_tile(side: int, tile: int) -> bytes:
    """A grey image of `side` pixels a side, stored as one tile of `tile` pixels a side, deflated."""
    content = zlib.compress(bytes(tile * tile))
    values = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(content)}
    values[324] = 8 + 2 + len(values) * 12 + 4
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II" + struct.pack("<HIH", 42, 8, len(values)) + directory + bytes(4) + content


def test_a_tiff_whose_tile_is_far_larger_than_the_image_is_refused() -> None:
    """A tile is decoded whole, so its pixels count and not those that it shows."""
    assert images.decode(tiff_of_one_tile(10, 256)).size == (10, 10)
    with pytest.raises(images.ImageError, match="tiles are far larger than the image"):
        images.decode(tiff_of_one_tile(10, 4096))


@pytest.mark.parametrize("data", [b"benign,early,pre,pro\n", b"GIF89a" + bytes(64), b"%PDF-1.7", bytes(1000)])
def test_other_content_is_unsupported_whatever_it_is_called(data: bytes) -> None:
    for read in (images.header, images.decode):
        with pytest.raises(images.UnsupportedImage, match="send JPEG, PNG, BMP, TIFF, WEBP"):
            read(data)


def test_an_empty_file_says_so() -> None:
    for read in (images.header, images.decode):
        with pytest.raises(images.ImageError, match="the file is empty"):
            read(b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_raises_nothing_but_image_error(kind: str) -> None:
    """Pillow raises SyntaxError or struct.error there, or merely warns, depending on the byte."""
    data = encoded(photograph(), kind, exif=turned(6))
    block = data.index(b"MM\0*")  # where the block's own header starts
    for position in range(block, block + 26):
        for value in (0x00, 0x7F, 0xFF):
            broken = bytearray(data)
            broken[position] = value
            if kind == "PNG":  # or its checksum would be all that is wrong
                chunk = data.index(b"eXIf")
                end = chunk + 4 + int.from_bytes(data[chunk - 4 : chunk])
                broken[end : end + 4] = zlib.crc32(broken[chunk:end]).to_bytes(4)
            decodes_or_raises_image_error(bytes(broken))


def test_resize_squashes_to_a_square() -> None:
    small = images.resize(photograph(), 32)
    assert small.shape == (32, 32, 3)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(images.resize(Image.fromarray(small), 32), small)  # of its size already


def test_brightness_is_mean_luma_and_sharpness_falls_with_blur() -> None:
    assert images.quality(np.full((4, 4, 3), (255, 0, 0), np.uint8))[0] == pytest.approx(0.299 * 255)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    blurred = images.resize(Image.fromarray(noise).resize((8, 8)), 32)
    assert images.sharpness(blurred) < images.sharpness(noise) / 10
    assert images.sharpness(np.full((8, 8, 3), 77, np.uint8)) == pytest.approx(0)


def test_behaviour_depends_on_the_size_and_the_version_and_on_nothing_else() -> None:
    assert images.behaviour(64) == images.behaviour(64)
    assert len({images.behaviour(64), images.behaviour(65), images.behaviour(64, 1), images.behaviour(64, 2)}) == 4


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_jpeg_is_scaled_as_libjpeg_scales(mode: str, progressive: bool) -> None:
    data = encoded(photograph().resize((1600, 1200)).convert(mode), "JPEG", progressive=progressive)
    reference = Image.open(io.BytesIO(data))
    reference.draft(mode, (400, 300))  # Pillow's name for it
    reference.load()
    assert reference.size == (400, 300)
    picture = images.read(data, least=300)[1]
    np.testing.assert_array_equal(picture, reference.convert("RGB"))
    np.testing.assert_array_equal(images.sized(data, 150), images.resize(picture, 150))


@pytest.mark.parametrize(
    ("side", "least", "becomes"), [(800, 100, 100), (800, 101, 200), (800, 799, 800), (64, 448, 64)]
)
def test_scaling_leaves_at_least_what_is_asked_and_never_enlarges(side: int, least: int, becomes: int) -> None:
    data = encoded(photograph().resize((side, side + 8)), "JPEG")
    assert images.read(data, least)[1].width == becomes


def test_what_is_seen_of_a_large_jpeg_hardly_changes_by_scaling_and_not_at_all_without() -> None:
    data = encoded(photograph().resize((2000, 1500), Image.Resampling.BICUBIC), "JPEG", exif=turned(6))
    whole = images.resize(images.decode(data), 64)
    np.testing.assert_array_equal(images.sized(data, 64, scaled=False), whole)
    difference = np.abs(images.sized(data, 64).astype(int) - whole)
    assert 0 < difference.mean() < 1
    header, decoded = apart.Ask(data, "seen", 64, 10**7).answer(helper := apart.Helper())
    helper.close()
    np.testing.assert_array_equal(decoded, images.sized(data, 64))
    assert (header.width, header.height) == (2000, 1500)  # the file's own, whatever was decoded


SEEDS = [
    encoded(photograph(), "JPEG"),
    encoded(photograph(), "JPEG", progressive=True, exif=turned(6)),
    encoded(photograph().convert("CMYK"), "JPEG"),
    encoded(photograph(), "PNG"),
    encoded(photograph().convert("P"), "PNG", transparency=3),
    encoded(photograph(), "BMP"),
    encoded(photograph(), "TIFF"),
    encoded(photograph(), "TIFF", compression="tiff_deflate"),
    encoded(photograph(), "WEBP"),
    encoded(photograph(), "WEBP", exif=turned(6)),
    encoded(photograph(), "AVIF"),
    encoded(photograph(), "PNG", icc_profile=icc.of_screen(icc.ADOBE_RGB, 2.2)),
    encoded(photograph(), "JPEG", icc_profile=icc.of_screen(icc.DISPLAY_P3, 2.2)),
    encoded(photograph().convert("CMYK"), "JPEG", icc_profile=icc.of_printer()),
    png(np.asarray(photograph()) * np.uint16(257), (b"tRNS", bytes(6)), (b"gAMA", b"\0\1\x86\xa0")),
    tiff(Page(np.asarray(photograph()) * np.uint16(257), apart=True, tile=(16, 16))),
    tiff(Page(np.asarray(photograph())[..., 0] * np.uint16(16), bits=12, deflated=True), big=True, order=">"),
    tiff(Page(np.asarray(photograph())[::4, ::4], tags={254: (4, 1)}), Page(np.asarray(photograph()), deflated=True)),
]


def decodes_or_raises_image_error(data: bytes) -> None:
    with suppress(images.ImageError):
        header = images.header(data)
        if header.width * header.height > 1_000_000 or max(header.width, header.height) > 32_768:
            return  # a mutated size: `serving.request.upload` refuses it by its header
        assert images.decode(data).mode == "RGB"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"RIFF"]))
def test_arbitrary_bytes_decode_or_raise_image_error(data: bytes, magic: bytes) -> None:
    decodes_or_raises_image_error(magic + data)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_mutated_images_decode_or_raise_image_error(data: st.DataObject) -> None:
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    end = data.draw(st.sampled_from([64, 256, len(mutated)]))  # headers are where parsers break
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, min(end, len(mutated)) - 1))
        mutated[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not mutated:
            break
    decodes_or_raises_image_error(bytes(mutated))
