"""Colours to sRGB, by the profile that a file carries, with LittleCMS (Pillow's ImageCms)."""

import io
import logging
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4_000_000  # a printer's has up to 3 MB

log = logging.getLogger(__name__)

_DRAWN_ON = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space and Pillow's mode for it
_PLAIN = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """An image as L, LA, RGB or RGBA in sRGB.

    Returns:
        The image, and why its profile was left out, or None.
    """
    if image.mode in _PLAIN:
        mode = "RGBA" if image.mode == "P" and "transparency" in image.info else _PLAIN[image.mode]
        image = image.convert("LA" if mode == "L" and image.has_transparency_data else mode)
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert(image.mode + "A")
    note = None
    if profile is not None:
        try:
            space, convert = _transform(profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            note = f"its colour profile is broken ({error}) and was left out"
        else:
            if _DRAWN_ON.get(space, "") == "RGB" and image.mode in ("L", "LA"):
                image = image.convert("RGBA" if image.mode == "LA" else "RGB")
            if image.mode.removesuffix("A") != _DRAWN_ON.get(space):
                note = f"its colour profile is for {space.strip()}, its pixels are {image.mode}: it was left out"
            elif convert is not None:
                return _applied(image, convert), None
    if note:
        log.warning("of an image: %s", note)
    return (image.convert("RGB") if image.mode == "CMYK" else image), note


def _applied(image: Image.Image, convert: ImageCms.ImageCmsTransform) -> Image.Image:
    if not image.mode.endswith("A"):
        return convert.apply(image)
    alpha = image.getchannel("A")
    colours = convert.apply(image.convert(image.mode[:-1]))
    colours.putalpha(alpha)
    return colours


@lru_cache(8)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """A profile's colour space, and its transform to sRGB; None where that changes nothing by more than a level."""
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        raise ValueError(f"it has {len(profile)} bytes" if profile else "it is not whole")
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in _DRAWN_ON:
        return space, None
    mode = _DRAWN_ON[space]
    convert = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return space, convert
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        before, plain = Image.fromarray(levels[None]), np.repeat(levels[:, None], 3, 1)[None]
    else:
        plain = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
        before = Image.fromarray(plain)
    change = np.abs(np.asarray(convert.apply(before), int) - plain).max()
    return space, None if change <= 1 else convert
