"""Colours as a viewer shows them: profiles against ImageCms; what PNG and AVIF state otherwise, against Chromium."""

import io
import logging
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from leukdetect import images
from leukdetect.decoding import decode
from tests.leukdetect.formats import icc
from tests.leukdetect.formats.pictures import encoded, photograph, png, turned
from tests.leukdetect.formats.tiffs import Page, tiff

PROFILES = {
    "a scanner's": icc.of_screen(icc.SRGB, 1.0),
    "Adobe RGB": icc.of_screen(icc.ADOBE_RGB, 2.2),
    "Display P3": icc.of_screen(icc.DISPLAY_P3, 2.2),
}
KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
}


def by_imagecms(pixels: Image.Image, profile: bytes) -> np.ndarray:
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(pixels, source, target, outputMode="RGB"), int)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_is_applied(kind: str, profile: bytes) -> None:
    data = encoded(photograph(), kind, icc_profile=profile, **KINDS[kind])
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    expected = by_imagecms(stored, profile)
    assert np.abs(expected - np.asarray(stored, int)).max() > 20
    np.testing.assert_allclose(np.asarray(images.decode(data), int), expected, atol=2)
    np.testing.assert_array_equal(images.upright(Image.open(io.BytesIO(data))), images.decode(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_profile_is_applied_beside_exif_rotation(kind: str, orientation: int) -> None:
    profile = PROFILES["Adobe RGB"]
    plain = images.decode(encoded(photograph(), kind, icc_profile=profile, **KINDS[kind]))
    data = encoded(photograph(), kind, icc_profile=profile, exif=turned(orientation), **KINDS[kind])
    np.testing.assert_array_equal(images.decode(data), np.rot90(np.asarray(plain), 2 if orientation == 3 else -1))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_printers_profile_is_applied(kind: str) -> None:
    profile = icc.of_printer()
    data = encoded(photograph().convert("CMYK"), kind, icc_profile=profile)
    stored = Image.open(io.BytesIO(data))
    expected = by_imagecms(stored, profile)
    assert np.abs(expected - np.asarray(stored.convert("RGB"), int)).max() > 20
    np.testing.assert_allclose(np.asarray(images.decode(data), int), expected, atol=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_grey_profile_is_applied(kind: str) -> None:
    profile = icc.of_grey(1.0)
    data = encoded(photograph().convert("L"), kind, icc_profile=profile)
    expected = by_imagecms(Image.open(io.BytesIO(data)), profile)
    np.testing.assert_allclose(np.asarray(images.decode(data), int), expected, atol=2)


def test_a_profile_of_colours_is_applied_to_grey_to_sixteen_bits_and_under_transparency() -> None:
    profile = PROFILES["a scanner's"]
    plain = photograph()
    expected = by_imagecms(plain, profile)
    deep = tiff(Page(np.asarray(plain) * np.uint16(257), apart=True, tags={34675: (7, profile)}))
    np.testing.assert_allclose(np.asarray(images.decode(deep), int), expected, atol=2)
    grey = encoded(plain.convert("L"), "JPEG", icc_profile=profile)
    stored = Image.open(io.BytesIO(grey)).convert("RGB")
    np.testing.assert_allclose(np.asarray(images.decode(grey), int), by_imagecms(stored, profile), atol=2)
    clear = plain.copy()
    clear.putalpha(Image.new("L", plain.size, 255))
    clear.putpixel((0, 0), (9, 9, 9, 0))
    shown = np.asarray(images.decode(encoded(clear, "PNG", icc_profile=profile)), int)
    assert shown[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(shown[1:], expected[1:], atol=2)


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(images.decode(encoded(photograph(), "PNG", icc_profile=profile)), photograph())


BROKEN = {
    "garbage": b"no profile at all" * 20,
    "cut off": PROFILES["Adobe RGB"][:200],
    "a printer's": icc.of_printer(),
    "of grey": icc.of_grey(1.0),
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_broken_profile_is_left_out_and_told_of(kind: str, profile: bytes, caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(photograph(), kind, icc_profile=profile, **KINDS[kind])
    with caplog.at_level(logging.WARNING, "leukdetect"):
        seen = decode(data, 32)
    np.testing.assert_array_equal(images.decode(data), images.decode(encoded(photograph(), kind, **KINDS[kind])))
    assert seen.header.note is not None
    assert "left out" in seen.header.note
    assert "colour profile" in caplog.text


def test_a_profile_that_is_not_whole_is_told_of() -> None:
    data = encoded(photograph(), "JPEG", icc_profile=bytes(70_000))  # two segments, of which one is lost
    second = data.rindex(b"\xff\xe2")
    lost = data[:second] + data[second + 2 + int.from_bytes(data[second + 2 : second + 4]) :]
    assert "left out" in (decode(lost, 32).header.note or "")


def test_a_bitmap_may_embed_a_profile() -> None:
    profile = PROFILES["Adobe RGB"]
    plain = encoded(photograph(), "BMP")
    size, start = struct.unpack_from("<I", plain, 2)[0], struct.unpack_from("<I", plain, 10)[0]
    grown = bytearray(124)
    grown[:40] = plain[14:54]
    struct.pack_into("<I", grown, 0, 124)
    grown[56:60] = b"DEBM"
    struct.pack_into("<II", grown, 112, 124 + size - start, len(profile))
    head = plain[:2] + struct.pack("<IHHI", size + 84 + len(profile), 0, 0, start + 84)
    data = head + bytes(grown) + plain[start:] + profile
    np.testing.assert_allclose(np.asarray(images.decode(data), int), by_imagecms(photograph(), profile), atol=2)


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def primaries(*xy: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in xy))


P3 = primaries(0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
D50 = primaries(0.3457, 0.3585, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
COLOURS = np.array([[[0, 255, 187], [51, 204, 238], [102, 153, 17], [153, 102, 68], [204, 51, 119]]], np.uint8)
AS_STORED = COLOURS[0].tolist()
# What Chromium 156 shows of COLOURS, read from a canvas (`--force-color-profile=srgb`).
IN_CHROMIUM: dict[str, tuple[list[tuple[bytes, bytes]], list[list[int]]]] = {
    "nothing": ([], AS_STORED),
    "gAMA of 1": ([gamma(1)], [[0, 255, 222], [124, 231, 247], [170, 203, 73], [203, 170, 141], [231, 124, 182]]),
    "gAMA of 0.5": ([gamma(0.5)], [[0, 255, 194], [56, 209, 240], [111, 162, 14], [162, 111, 75], [209, 56, 129]]),
    "gAMA of 0.35": ([gamma(0.35)], [[0, 255, 172], [26, 192, 234], [76, 132, 1], [132, 76, 42], [192, 26, 95]]),
    "gAMA of 0.45455": ([gamma(0.45455)], AS_STORED),
    "gAMA of 1, sRGB": ([gamma(1), (b"sRGB", b"\0")], AS_STORED),
    "cHRM alone": ([P3], AS_STORED),
    "gAMA, cHRM": ([gamma(0.45455), P3], [[0, 255, 184], [0, 209, 243], [85, 156, 0], [163, 99, 59], [224, 14, 121]]),
    "of D50": ([gamma(0.45455), D50], [[0, 255, 190], [0, 205, 237], [96, 155, 30], [159, 103, 69], [214, 50, 120]]),
    "cICP, P3": (
        [(b"cICP", bytes((12, 13, 0, 1)))],
        [[0, 255, 182], [0, 208, 242], [85, 155, 0], [162, 99, 61], [222, 24, 120]],
    ),
    "cICP, BT.709": (
        [(b"cICP", bytes((1, 1, 0, 1)))],
        [[0, 255, 183], [40, 201, 237], [94, 147, 5], [147, 94, 58], [201, 40, 112]],
    ),
    "cICP, sRGB": ([gamma(1), (b"cICP", bytes((1, 13, 0, 1)))], AS_STORED),
}


@pytest.mark.parametrize(("chunks", "shown"), IN_CHROMIUM.values(), ids=IN_CHROMIUM.keys())
@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_that_states_its_colours_is_shown_as_chromium_does(
    depth: int, chunks: list[tuple[bytes, bytes]], shown: list[list[int]]
) -> None:
    pixels = COLOURS if depth == 8 else COLOURS * np.uint16(257)
    np.testing.assert_allclose(np.asarray(images.decode(png(pixels, *chunks)), int)[0], shown, atol=2)


def test_grey_of_sixteen_bits_states_its_gamma_too() -> None:
    values = np.linspace(0, 65535, 16).astype(np.uint16)[None]
    shown = np.asarray(images.decode(png(values, gamma(1))))[0, :, 0]
    in_chromium = [0, 73, 102, 124, 141, 156, 170, 182, 193, 203, 213, 222, 231, 239, 247, 255]
    np.testing.assert_allclose(shown.astype(int), in_chromium, atol=2)


def test_a_profile_comes_before_gamma() -> None:
    data = encoded(photograph(), "PNG", icc_profile=PROFILES["Adobe RGB"])
    end = 8 + 25  # behind the header
    with_gamma = png(COLOURS, gamma(1))[end : end + 16]
    np.testing.assert_array_equal(images.decode(data[:end] + with_gamma + data[end:]), images.decode(data))


@pytest.mark.parametrize("data", ["png", "avif"])
def test_a_high_dynamic_range_is_refused_by_name(data: str) -> None:
    if data == "png":
        content = png(COLOURS, (b"cICP", bytes((9, 16, 0, 1))))
    else:
        plain = encoded(photograph(), "AVIF")
        at = plain.index(b"colrnclx") + 8
        content = plain[:at] + struct.pack(">HH", 9, 16) + plain[at + 4 :]
    with pytest.raises(images.UnsupportedImage, match="high dynamic range"):
        images.decode(content)


def test_an_avif_of_another_space_is_converted() -> None:
    plain = encoded(photograph(), "AVIF", quality=100, subsampling="4:4:4")
    at = plain.index(b"colrnclx") + 8
    p3 = icc.of_screen(icc.DISPLAY_P3, 2.2)
    for codes, profile in (((12, 4), p3), ((1, 13), None), ((1, 1), None)):
        data = plain[:at] + struct.pack(">HH", *codes) + plain[at + 4 :]
        stored = images.decode(plain)
        expected = np.asarray(stored, int) if profile is None else by_imagecms(stored, profile)
        np.testing.assert_allclose(np.asarray(images.decode(data), int), expected, atol=2)


def test_a_probe_whose_colours_decide_the_behaviour_lies_far_from_its_steps() -> None:
    """LittleCMS may round otherwise elsewhere, and a model file is not to be refused for that."""
    data = (images.PROBES / "profile.png").read_bytes()
    shown = np.asarray(images.decode(data), int)
    assert np.abs(shown - np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)).max() > 20
    assert ((shown % 8 >= 2) & (shown % 8 <= 5)).all()
