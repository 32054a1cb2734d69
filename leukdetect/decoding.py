"""From whatever holds an image to what the model sees of it, with everything cheap first."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from leukdetect import images
from leukdetect.formats.errors import reading

MAX_PIXELS = 40_000_000  # of a file; a microscope camera's has 12 million
# A strip of a few rows can hold millions of columns within MAX_PIXELS; resizing it would take gigabytes.
MAX_SIDE = 32_768

Source = bytes | str | Path | Image.Image | np.ndarray


class TooLargeError(images.ImageError):
    """The image has too many pixels; none was decoded."""


@dataclass(frozen=True)
class Decoded:
    """An image as the model will see it. `brightness`, `sharpness` and `stain` are those of `pixels`."""

    pixels: np.ndarray  # uint8 [S, S, 3] RGB
    header: images.Header
    sha256: str | None  # of the file; None where there was none
    brightness: float
    sharpness: float
    stain: float


def decode(data: bytes, size: int, max_pixels: int = MAX_PIXELS, scaled: bool = True) -> Decoded:
    """Checks an image file's header, decodes and resizes it to `size` pixels a side; `scaled` as the contract says.

    Raises:
        TooLargeError: the header promises more than `max_pixels`.
        UnsupportedImage, ImageError: as `images.decode`.
    """
    header, picture = images.read(data, images.least(size, scaled), lambda header: check(header, max_pixels))
    return seen(picture, header, size, data)


def picture(source: Source) -> Image.Image:
    """The upright RGB image, at its own size.

    Args:
        source: an image file's bytes or path, a Pillow image, or uint8 [H, W, 3] RGB.

    Raises:
        ImageError: it is no image; the message says what is wanted.
        OSError: the path cannot be read.
    """
    if isinstance(source, Image.Image):
        return images.upright(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise images.ImageError(
                f"the array is {source.dtype} {list(source.shape)}; an image is uint8 [height, width, 3], "
                "red, green, blue from 0 to 255"
            )
        return Image.fromarray(source)
    return images.decode(file_bytes(source))


def check(header: images.Header, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses by the header alone an image that is too large to decode. Raises TooLargeError: it is."""
    if header.width * header.height > max_pixels or max(header.width, header.height) > MAX_SIDE:
        raise TooLargeError(
            f"the image has {header.width} × {header.height} pixels; at most {max_pixels / 1e6:g} megapixels "
            f"and {MAX_SIDE} pixels a side are accepted. Crop it or make it smaller"
        )


def file_bytes(source: object) -> bytes:
    """An image file's bytes, of a path or of themselves; raises ImageError for anything else, OSError for the path."""
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    raise images.ImageError(
        f"a {type(source).__name__} is no image; give a file's bytes or path, a Pillow image, "
        "or an array uint8 [height, width, 3]"
    )


def seen(picture: Image.Image, header: images.Header, size: int, data: bytes | None) -> Decoded:
    """What the model sees of an upright RGB image, and the measures of it; `data`: the file that it came in."""
    with reading("the image cannot be resized"):
        pixels = images.resize(picture, size)
    sha256 = None if data is None else hashlib.sha256(data).hexdigest()
    return Decoded(pixels, header, sha256, *images.quality(pixels), images.stain(pixels))
