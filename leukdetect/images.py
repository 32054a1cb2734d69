"""The one decoder: bytes of an image file to the pixels that the model sees, in training and in serving.

Training decodes through this module too (`pipeline.prepare`), and every model file carries a hash of
what it does (`behaviour`), so a server whose decoder differs from the one trained with refuses the file.
"""

import base64
import hashlib
import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

# The formats that microscope cameras and viewers export; recognised by content, never by file name.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF's tags
_SCAN = b"\xff\xda"  # the marker that begins a JPEG scan; inside pixel data, 0xff is never followed by this byte
_ARITHMETIC = b"\xff\xc9"  # the marker of an arithmetic-coded JPEG frame

# Limits for files that cost more to decode than their size shows. A JPEG may have any number of scans of a few bytes,
# each of which goes over every pixel: 170 kB kept a processor busy for 19 s. A camera's has about ten scans; the most
# that is allowed takes 4 s. A TIFF's tile is decoded whole, however little of it lies within the image.
MAX_SCANNED_PIXELS = 4_000_000_000
MAX_TILE_PIXELS = 2**22
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

# Pillow warns of odd tags, and raises what matters. Set once for the process: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# We cap pixels ourselves, from the header; Pillow's own warning at 89 MP would come too late.
Image.MAX_IMAGE_PIXELS = None


class ImageError(ValueError):
    """The bytes are not an image that can be used; the message says why."""

    @property
    def sentence(self) -> str:
        """The message as a sentence for people."""
        return str(self)[0].upper() + str(self)[1:] + "."


class UnsupportedImage(ImageError):
    """The bytes are not one of `FORMATS`."""


@dataclass(frozen=True)
class Header:
    """What an image's first bytes say, read without decoding a pixel."""

    format: str
    width: int
    height: int
    mode: str


def header(data: bytes) -> Header:
    """Reads format, size and mode without decoding.

    Raises:
        UnsupportedImage: the content is none of `FORMATS`.
        ImageError: the data is empty or its header is broken.
    """
    with _open(data) as image:
        return _header(image)


def read(data: bytes, check: Callable[[Header], None]) -> tuple[Header, Image.Image]:
    """Header and `decode`d image in one go; what `check` raises on seeing the header ends it before a pixel is decoded.

    Raises:
        UnsupportedImage, ImageError: as `decode`.
    """
    with _open(data) as image:
        header = _header(image)
        check(header)
        return header, _decode(image, data)


def decode(data: bytes) -> Image.Image:
    """Decodes to an upright 8-bit RGB image of the file's own size.

    EXIF orientation is applied; alpha and palette transparency are laid over white, as an empty field
    on a slide is; grey is repeated in three channels; 16-bit grey keeps its upper 8 bits; CMYK and
    YCbCr are converted by Pillow; of several frames the first is taken.

    Raises:
        UnsupportedImage, ImageError: as `header`, and when the pixels are truncated or corrupt.
    """
    with _open(data) as image:
        return _decode(image, data)


def upright(image: Image.Image) -> Image.Image:
    """An open Pillow image as `decode` would give it; the image itself stays as it is.

    Raises:
        ImageError: its pixels are truncated or corrupt, or floats, whose range nobody knows.
    """
    if image.mode == "F":
        raise ImageError("the image's pixels are floats; scale them to 0..255 and convert it to 'RGB'")
    with _reading("the image is truncated or corrupt"):
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Squashes an RGB image to uint8 [size, size, 3], antialiased bilinear, as the paper resizes."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def brightness(pixels: np.ndarray) -> float:
    """Mean luma (ITU-R BT.601) of uint8 [H, W, 3], in 0..255."""
    return quality(pixels)[0]


def sharpness(pixels: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of the luma of uint8 [H, W, 3]; small means blurred.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy". Depends on the image's
    size, so compare like with like.
    """
    return quality(pixels)[1]


def quality(pixels: np.ndarray) -> tuple[float, float]:
    """Brightness and sharpness, from one look at the luma."""
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


def behaviour(size: int) -> str:
    """SHA-256 of what decode and resize make of a fixed photograph-like JPEG and a 16-bit PNG."""
    digest = hashlib.sha256()
    for data in _probes():
        digest.update(resize(decode(data), size).tobytes())
    return digest.hexdigest()


def _header(image: Image.Image) -> Header:
    kind = "JPEG" if image.format == "MPO" else image.format or ""  # a phone's JPEG with further pictures behind it
    return Header(kind, image.width, image.height, image.mode)


def _decode(image: Image.Image, data: bytes) -> Image.Image:
    with _reading(f"the {image.format} data is truncated or corrupt"):
        _refuse_bomb(image, data)
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        if image.format == "JPEG" and image.mode == "RGB" and upright:
            # Bit-identical to Pillow and about a fifth faster (tests/leukdetect/test_images.py).
            return Image.fromarray(simplejpeg.decode_jpeg(data, strict=True))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def _refuse_bomb(image: Image.Image, data: bytes) -> None:
    """Refuses files that cost far more to decode than the size in their header shows."""
    if image.format in ("JPEG", "MPO") and _may_have_many_scans(image, data):
        scans = data.count(_SCAN)
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ImageError(f"the JPEG goes over its pixels in {scans} scans, far more than an image needs")
    if isinstance(image, TiffImageFile):
        sides = [image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        most = max(MAX_TILE_PIXELS, image.width * image.height)
        if not all(isinstance(side, int) for side in sides) or math.prod(sides) > most:
            raise ImageError("the TIFF's tiles are far larger than the image that they are to show")


def _may_have_many_scans(image: Image.Image, data: bytes) -> bool:
    """Only progressive, arithmetic and multi-picture JPEGs: counting scans costs a twentieth of decoding the others."""
    if image.format == "MPO" or "progressive" in image.info:
        return True
    # Where Pillow stopped reading the header.
    head = image.fp.tell() if isinstance(image, ImageFile.ImageFile) and image.fp else len(data)
    return data.find(_ARITHMETIC, 0, head) >= 0


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("the file is empty")
    with _reading("the image's header is broken"):
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise UnsupportedImage(f"the content is not an image of a known type; send {', '.join(FORMATS)}") from error


@contextmanager
def _reading(complaint: str) -> Iterator[None]:
    """What Pillow's parsers raise on malformed bytes becomes ImageError."""
    try:
        yield
    except ImageError:
        raise
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, EOFError, struct.error) as error:
        raise ImageError(f"{complaint} ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):  # Pillow opens 16-bit grey PNG as "I;16" or "I"
        return Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _probes() -> tuple[bytes, bytes]:
    return base64.b64decode(_PROBE_JPEG), base64.b64decode(_PROBE_PNG)


# 100×75, 4:2:0, quality 40
_PROBE_JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7"
    "gYKBTmCNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8"
    "fHx8fHx8fHz/wAARCABLAGQDASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
    "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
    "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
    "4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAEC"
    "AxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVm"
    "Z2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq"
    "8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCjO1UJWq5NVGWuGlE5MNEl0u2F3fqr4KIN7A98dvzxXTOay/D0YFtNLk7mfafTgf8A160m"
    "rCuuapbsKvLmq27DCaTNBpKSpG9OI8GpUNQrUyCqdA6kizHUl1ai8tHhONxGVJ7HtUcYq7CKyeHad0Wm4u6OEu5MIkYPU5PPb/P8"
    "qW37U7XFA1y6VSSA3f3GT+pNFuOle9HCXpp23OXGVVWqOa2NGP7oop0Y+UUVzPBnmsoTCqMorSmWqMq1jQO3Dmv4fH+gSf8AXU/y"
    "FaDCsnw9Ntnlt2PDjcuT3HoPp/KttkqKkLVGZVVy1ncrEUm2pilASuiFM6abGKtTItCpUo2r16+lbOEYK8nZHTFksS1ZLCGFpCQM"
    "DjPr2qsjscYGKiv32xKrNgfeYk9APX/PauGWJpuXLBXM8RL2dJyOS1ZlGrT85+70/wB0U63k9F/OqTObi5kmbOXYnBOce1X7aPpX"
    "sSrV3FJaHGoKEFF9EX45G2DgUVLHH8gorkvX/mZg7EMyVSlStaRAyhlIKkZBHQiqckVcOHkaYeRnxs9vOksfDIciurtZku7dZo8c"
    "jkA/dPcVzbxU+0uJrGUvCRyMMrdDXqOj7VJrc76lL20U1ujpTHRsxyeKZZ6jbXa/eET8Ao5AJPt61O6lz049K5q1VYZWktexzRUo"
    "u0lYgJJ4XgetOjjqZYqm2pGheRlRR1LHAFeXKU60rydzrjLohIoq5vxLf/vGtYjlj8r88qPT8efw+taepa2LeKRbMBmXI8xhlc9s"
    "evNciiZJdySScknkk17OBwNn7WpokZ4qD91T9bfkPt4uladugXGeKpw5P3Rj3rRt4SSCea6K+KhHSmr/AJHHN9y3GV29DRViOH5B"
    "xRXnfWK3l9xyuSMPRrsKPskzADP7o4/MZ/l/+qtOSH2rAlg9q1tL1DzcW10f3nRHP8Xsff8An9esKnf34nfUpf8ALyHzB4faoWh9"
    "q2Hg9qryxbVJxz2r06NVQjzPZGtGqY0yZO0dB1qS3nubfb5MzqF6LnK/l0q19n9qcLf2ri9o68nKZ6sZxasxBqN+ylTOcEY4UA/n"
    "imFZJmDSu0jAYyxJNWUt/anmPHyr17mupOlQjzNWN4OK+FWMrUT5aJEvLMcnnoP8/wAqqxQljk81cni8y5bjhflH4VYgt/aodWdZ"
    "K+3Y+exmJU60n8hlvB04rTjRIIzJKwVFGSTSKkdvE0szBI1GSTWHe38moShUBSBT8q+vufemoQXxHLShKvLTYL2b7ZcNIxAA4QdM"
    "L2op0dt8g4orZYyUVZR0PVUoxVkW5bf2qpJbe1a8JMlpC78s0akn1JFRSKPSvLwk2nY5KNRp2IbHUpbVVimTzYhwD/Eo/r9K00nt"
    "70/uHBIGSp4YdO1ZTKPSqEije3Heu/GU4ypJLS7O2NCFR3WjOn+ze1OFt7VjafqF19qhiMzMjyKGDfMeSB1PNdYqj0rjhTdJpMmo"
    "p0WkzOaHYMAcmmND5UTPjoOPrWgVBc5HeqHiKV7bR5JYW2uGXnGe9cftJYmuo9L2Q51pRpvl3M+G19qin1S1tBhP37+iHj8/8Kwm"
    "uZro/v5WcZzgnj8ulCAFzkd69+dJUIJvVs8mnhNb1Hcmnmn1GYST4wBhVXotXLW16cUluq8cVrWqrxxXPGN9WdUqnJHlitAjtfkH"
    "FFXQTzz0NFcMsfTi2uVnNzyP/9k="
)
# 32×24, 16-bit grey
_PROBE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAYEAAAAADuqHyrAAAAr0lEQVR4nGNkYGC9w4YESeUxMu0hXzPbHbY7LMx7mO8w32G+w3SH"
    "6Q6MTQqPkcOEPJthPEauD+RphocB7xpSlOMMA1R/MWPw8ISBsAqFYSD6gJJUgBSN5EYk1jAghccoJ0JuCEDDQOECafGOMwzIjUh4"
    "GBAb7xhhoMlCYXbWPkBJKqBCdmZh3kO+ZuY7THcYjb+QFu/oPJxJmdiYQQoD8iKS0UaDwuxs94SSVMB2BwA+O5gt/072IgAAAABJ"
    "RU5ErkJggg=="
)
