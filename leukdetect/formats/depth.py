"""Samples of any depth to 8 bits: by what the file says of their range, or by its type where they fill it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from leukdetect.formats.errors import ImageError

# In a bright field the glass is lighter than this share of the range. Where nothing is, the values are those of a
# smaller depth, such as 12 bits in 16: shown as they are said to be, the picture would be black.
_LIGHTEST = 1 / 4
SCALE = "scale them to 0..255, or send a TIFF that says the range in its tag MaxSampleValue"


@dataclass(frozen=True)
class Range:
    """Which values are black and white, as the file says; None: it does not."""

    black: float | None = None
    white: float | None = None


def eight_bits(samples: np.ndarray, bits: int, said: Range, remedy: str, colours: int | None = None) -> np.ndarray:
    """Samples [H, W, C] to uint8: of whole numbers the upper 8 bits.

    Args:
        samples: unsigned or signed integers, or floats.
        bits: how many of an integer are used by its type.
        said: the range that the file states.
        remedy: how to state it, for the message.
        colours: how many of the C carry colour; the others are transparency.

    Raises:
        ImageError: no range is stated, and the type's is not the one that is used; or a value is no number.
    """
    light = samples if colours is None else samples[..., :colours]
    low, high = light.min(), light.max()
    floats = samples.dtype.kind == "f"
    if floats and not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("some of the image's pixels are not finite numbers; scale it to 8 bits a channel")
    # By default as the type has it; floats from 0 to 1. What a viewer makes of signed numbers differs.
    black, white = said.black or 0.0, said.white
    if white is None:
        white = 1.0 if floats else float(2**bits - 1)
        fits = samples.dtype.kind != "i" and low >= 0 and white * _LIGHTEST <= high <= white
        if not fits and (floats or bits > 8 or low < 0):
            kind = "floats" if floats else f"{bits}-bit {'signed ' * (samples.dtype.kind == 'i')}numbers"
            raise ImageError(
                f"the image's pixels are {kind} from {low:g} to {high:g}, of a range that is not stated; {remedy}"
            )
    if not black < white < np.inf:
        raise ImageError(f"the image says that white is {white:g} and black {black:g}; scale it to 8 bits a channel")
    found = np.empty(samples.shape, np.uint8)
    if not floats and not black and white == 2**bits - 1 and bits >= 8 and samples.dtype.kind == "u":
        return np.right_shift(samples, bits - 8, out=found, casting="unsafe")
    # Whole numbers in 256 equal steps, as their upper bits are; floats (and fewer steps than 256) to the nearest.
    steps = not floats and white - black >= 255
    scale, shift = (256 / (white - black + 1), 0) if steps else (255 / (white - black), 0.5)
    for row, line in enumerate(samples):  # a row at a time: of the whole image it would be eight times its size
        found[row] = np.clip((line.astype(np.float64) - black) * scale + shift, 0, 255)
    return found


def grey16(samples: np.ndarray) -> Image.Image:
    """Grey of 16 bits [H, W], or of 16 bits in 32 as Pillow's mode I may hold, to 8 bits.

    Raises ImageError: its values are those of another depth.
    """
    if samples.dtype.kind == "i" and samples.min() >= 0 and samples.max() < 2**16:
        samples = samples.astype(np.uint16)
    return Image.fromarray(eight_bits(samples, 8 * samples.dtype.itemsize, Range(), SCALE))
