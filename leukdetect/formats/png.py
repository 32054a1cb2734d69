"""PNG's samples of 16 bits, and the colour that is transparent, which has the samples' depth."""

import io

import numpy as np
from PIL import Image, ImageFile

from leukdetect.formats import depth
from leukdetect.formats.errors import ImageError

_GREY, _COLOUR = 0, 2  # the header's colour types without alpha and palette
_FEWEST = 64  # of 256: a quarter of the range, as leukdetect.formats.depth has it


def decode(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The pixels of a PNG that Pillow opened, 8 bits a sample; its transparent colour as alpha.

    Raises ImageError, or what Pillow raises: they are corrupt, or 16 bits of which only the lower ones are used.
    """
    bits, kind = data[24:26]
    clear = image.info.get("transparency")
    image.load()
    if bits < 16:
        if kind == _GREY and isinstance(clear, int) and image.mode == "L":
            image.info["transparency"] = clear * (255 // (2**bits - 1))
        return image
    if kind == _GREY:
        values = np.asarray(image).astype(np.uint16)
        grey = depth.grey16(values)
        return _without(grey, values == clear) if isinstance(clear, int) else grey
    colours = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
    if colours.max() < _FEWEST:
        raise ImageError(
            f"the image's pixels are 16-bit numbers below {256 * (int(colours.max()) + 1)}: those of a smaller depth; "
            f"{depth.SCALE}"
        )
    if not isinstance(clear, tuple) or kind != _COLOUR:
        return image
    with Image.open(io.BytesIO(data), formats=("PNG",)) as lower:  # the same, of each sample the lower 8 bits
        lower.tile = [each._replace(args="RGB;16L") for each in lower.tile]
        lower.info.pop("transparency")
        low = np.asarray(lower)
    del image.info["transparency"]
    same = [np.asarray(image)[..., n] * np.uint16(256) + low[..., n] == value for n, value in enumerate(clear)]
    return _without(image, np.logical_and.reduce(same))


def _without(image: Image.Image, clear: np.ndarray) -> Image.Image:
    opaque = image.copy()
    opaque.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return opaque
