"""The one decoder: bytes of an image file to the pixels that the model sees, in training and in serving.

Training decodes through this module too (`pipeline.prepare`), and every model file carries a hash of
what it does (`behaviour`), so a server whose decoder differs from the one trained with refuses the file.
"""

import hashlib
import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

# The formats that microscope cameras and viewers export; recognised by content, never by file name.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
PROBES = Path(__file__).with_name("probes")
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
    for probe in ("photograph.jpg", "grey16.png"):  # 100×75, 4:2:0, quality 40; 32×24
        digest.update(resize(decode((PROBES / probe).read_bytes()), size).tobytes())
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
