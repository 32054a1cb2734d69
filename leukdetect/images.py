"""The one decoder: bytes of an image file to the pixels that the model sees, in training and in serving.

Training decodes through this module too (`pipeline.prepare`), and every model file carries a hash of
what it does (`behaviour`), so a server whose decoder differs from the one trained with refuses the file.
"""

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from leukdetect.formats import colour, depth, jpeg, kinds, png, profiles
from leukdetect.formats.errors import ImageError, UnsupportedImage, reading
from leukdetect.formats.tiff import MAGIC, Tiff

__all__ = ["FORMATS", "Header", "ImageError", "UnsupportedImage"]

# The formats that microscope cameras, viewers and phones export; recognised by content, never by file name.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", *(("AVIF",) if features.check("avif") else ()))
PROBES = Path(__file__).with_name("probes")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = {  # how to turn what is stored so
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STATED = {"AVIF": profiles.of_avif, "BMP": profiles.of_bmp}  # profiles of which Pillow does not tell
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

# Pillow warns of odd tags, and raises what matters. Set once for the process: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# We cap pixels ourselves, from the header; Pillow's own warning at 89 MP would come too late.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Header:
    """What an image's first bytes say, read without decoding a pixel."""

    format: str
    width: int
    height: int
    mode: str
    note: str | None = None  # what of the file was left out, such as a broken colour profile; known once it is decoded


def header(data: bytes) -> Header:
    """Reads format, size and mode without decoding.

    Raises:
        UnsupportedImage: the content is none of `FORMATS`, or a kind of them that is not decoded.
        ImageError: the data is empty or its header is broken.
    """
    return _open(data)[0]


def read(
    data: bytes, least: int = 0, check: Callable[[Header], None] = lambda header: None
) -> tuple[Header, Image.Image]:
    """Header and `decode`d image in one go.

    Args:
        least: where it is not 0, a JPEG comes smaller by eighths (DCT scaling), but not below this many pixels a side.
        check: sees the header before a pixel is decoded; what it raises ends it.

    Raises:
        UnsupportedImage, ImageError: as `decode`.
    """
    header, opened = _open(data)
    check(header)
    return _decode(header, opened, data, least)


def decode(data: bytes) -> Image.Image:
    """Decodes to an upright 8-bit RGB image of the file's own size, in sRGB, as a viewer shows it.

    EXIF orientation is applied, and the colour profile, or what a PNG or AVIF states in its place; alpha and palette
    transparency are laid over white, as an empty field on a slide is; grey is repeated in three channels; 16 bits keep
    the upper 8, other depths are scaled by what the file says of their range; CMYK without a profile and YCbCr are
    converted by Pillow; of several frames the first is taken, of a TIFF's pages the first that is no thumbnail.

    Raises UnsupportedImage, ImageError: as `header`, and when the pixels are truncated or corrupt, or of a range that
    the file does not state.
    """
    return read(data)[1]


def upright(image: Image.Image) -> Image.Image:
    """An open Pillow image as `decode` would give it; the image itself stays as it is.

    Raises ImageError: its pixels are truncated or corrupt, or numbers of a range that nobody knows, such as floats.
    """
    if (data := _undecoded(image)) is not None:
        return decode(data)
    if image.mode == "F":
        raise ImageError("the image's pixels are floats; scale them to 0..255 and convert it to 'RGB'")
    with reading("the image is truncated or corrupt"):
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        pixels = depth.grey16(np.asarray(image)) if image.mode.startswith("I") else image
        return _shown(pixels, image.info.get("icc_profile"), orientation)[0]


def _undecoded(image: Image.Image) -> bytes | None:
    """The file of an image that Pillow opened and has not decoded yet, if it is one of `FORMATS`."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in (*FORMATS, "MPO"):
        return None
    if not image.tile or not image.fp or image.tell() != 0:
        return None
    at = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(at)
    return data


def sized(data: bytes, size: int, scaled: bool = True) -> np.ndarray:
    """An image file `decode`d and `resize`d: what the model sees of it, uint8 [size, size, 3].

    Args:
        scaled: as the model's contract says; a JPEG of many megapixels is then decoded to `least(size)` alone.

    Raises:
        UnsupportedImage, ImageError: as `decode`.
    """
    return resize(read(data, least(size, scaled))[1], size)


def least(size: int, scaled: bool) -> int:
    """What `read` may scale a JPEG down to: twice the size, so that resizing still averages what lies between."""
    return 2 * size if scaled else 0


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Squashes an RGB image to uint8 [size, size, 3], antialiased bilinear, as the paper resizes."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of the luma of uint8 [H, W, 3]; small means blurred.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy". Depends on the image's
    size, so compare like with like.
    """
    return quality(pixels)[1]


def quality(pixels: np.ndarray) -> tuple[float, float]:
    """Mean luma (ITU-R BT.601) of uint8 [H, W, 3], in 0..255, and `sharpness`."""
    y = pixels.astype(np.float32) @ _LUMA
    laplacian = y[:-2, 1:-1] + y[2:, 1:-1]
    laplacian += y[1:-1, :-2]
    laplacian += y[1:-1, 2:]
    laplacian -= 4 * y[1:-1, 1:-1]
    # The same as np.mean and np.var to the last bit, with a third of the calls, which dominate on a small image.
    brightness = np.add.reduce(y, axis=None) / y.size
    laplacian -= np.add.reduce(laplacian, axis=None) / laplacian.size
    laplacian *= laplacian
    return float(brightness), float(np.add.reduce(laplacian, axis=None) / laplacian.size)


def density(pixels: np.ndarray) -> np.ndarray:
    """How strongly each pixel of uint8 [H, W, 3] stops red and green light: float32 [H, W], 0 unless it stops both.

    The geometric mean of the two optical densities (Beer–Lambert; natural logarithm) against the glass, which is the
    lightest fiftieth of either channel. Chromatin takes up azure and eosin together and stops both. A red cell does
    not: a pink one lets red through, and a blue one, of a thick smear or another stain, most of the green.
    """
    passed = pixels[..., :2].reshape(-1, 2).T + np.float32(1)
    last = passed.shape[1] - 1 - passed.shape[1] // 50
    glass = np.partition(passed, last)[:, last, None]
    red, green = np.log(np.maximum(glass / passed, 1))
    return np.sqrt(red * green).reshape(pixels.shape[:2])


def stain(pixels: np.ndarray) -> float:
    """The `density` of the darkest nucleus in uint8 [S, S, 3], small where there is none.

    Its 98th percentile over every k-th pixel: a nucleus is larger than a fiftieth of a field.
    """
    step = max(1, len(pixels) // 32)
    found = density(pixels[::step, ::step]).ravel()
    last = len(found) - 1 - len(found) // 50
    return float(np.partition(found, last)[last])


def behaviour(size: int, version: int = 3) -> str:
    """SHA-256 of what decode and resize make of fixed images: a photograph-like JPEG, a 16-bit PNG, since version 2
    a PNG of a linear colour profile and a TIFF of 16 bits whose planes lie apart, and since version 3 the JPEG scaled.

    Version 1 is what model files carry from before colour profiles were applied, version 2 from before JPEGs were
    scaled.
    """
    digest = hashlib.sha256()
    for probe in ("photograph.jpg", "grey16.png"):  # 100×75, 4:2:0, quality 40; 32×24
        digest.update(resize(decode((PROBES / probe).read_bytes()), size).tobytes())
    if version > 1:
        digest.update(decode((PROBES / "planes16.tif").read_bytes()).tobytes())
        # LittleCMS may round otherwise elsewhere: its colours in steps of 8, of which none lies near an edge.
        digest.update((np.asarray(decode((PROBES / "profile.png").read_bytes())) // 8).tobytes())
    if version > 2:
        for most in (60, 30, 15, 8):  # of its 75 rows: 7, 4, 2 and 1 eighths
            digest.update(read((PROBES / "photograph.jpg").read_bytes(), most)[1].tobytes())
    return digest.hexdigest()


def _open(data: bytes) -> tuple[Header, ImageFile.ImageFile | Tiff]:
    if not data:
        raise ImageError("the file is empty")
    with reading("the image's header is broken"):
        tiff = Tiff(data) if data[:4] in MAGIC else None
        if tiff and not tiff.plain:
            return Header("TIFF", tiff.width, tiff.height, tiff.mode), tiff
        described = tiff.as_pillow_reads_it() if tiff else data
        try:
            image = Image.open(io.BytesIO(described), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise (tiff.unknown() if tiff else kinds.unsupported(data, ", ".join(FORMATS))) from error
        kind = "JPEG" if image.format == "MPO" else image.format or ""  # a phone's, with further pictures behind it
        width, height = (tiff.width, tiff.height) if tiff else image.size
        return Header(kind, width, height, image.mode), image


def _decode(header: Header, opened: ImageFile.ImageFile | Tiff, data: bytes, least: int) -> tuple[Header, Image.Image]:
    with reading(f"the {header.format} data is truncated or corrupt"):
        if isinstance(opened, Tiff):
            image, note = _shown(opened.decode(), opened.profile or None, opened.orientation)
        else:
            orientation = Tiff(data).orientation if header.format == "TIFF" else opened.getexif().get(_ORIENTATION, 1)
            profile = opened.info["icc_profile"] or b"" if "icc_profile" in opened.info else None
            if header.format == "JPEG":
                image = jpeg.decode(opened, data, least)
            elif header.format == "PNG":
                image, profile = png.decode(opened, data), profiles.of_png(data, opened.info) or profile
            else:
                if profile is None and header.format in _STATED:
                    profile = _STATED[header.format](data)
                image = opened
                image.load()
            image, note = _shown(image, profile, orientation)
        return (replace(header, note=note) if note else header), image


def _shown(image: Image.Image, profile: bytes | None, orientation: int) -> tuple[Image.Image, str | None]:
    """Stored pixels as RGB in sRGB on white, the right way up; and why the profile was left out, or None."""
    image, note = colour.to_srgb(image, profile)
    if image.mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if orientation in _TURNED:  # without Pillow's exif_transpose, which writes EXIF anew, and may fail in that
        image = image.transpose(_TURNED[orientation])
    return (image if image.mode == "RGB" else image.convert("RGB")), note
