"""JPEG to pixels by libjpeg-turbo: odd markers are forgiven, as every viewer does, and damaged pixels are not."""

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from leukdetect import cost
from leukdetect.formats import kinds
from leukdetect.formats.errors import ImageError, UnsupportedImage

_COLOURS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's modes as simplejpeg calls them
_SCAN = b"\xff\xda"  # the marker that begins a JPEG scan; inside pixel data, 0xff is never followed by this byte
_ARITHMETIC = b"\xff\xc9"  # the marker of an arithmetic-coded JPEG frame

_MAX_STEPS = 10_000  # segments, and bytes 0xff between them, that are looked at

# A JPEG may have any number of scans of a few bytes, each of which goes over every pixel: 170 kB kept a processor busy
# for 19 s. A camera's has about ten scans; the most that is allowed takes 4 s.
MAX_SCANNED_PIXELS = 4_000_000_000


def decode(image: ImageFile.ImageFile, data: bytes, least: int = 0) -> Image.Image:
    """The pixels of a JPEG that Pillow opened, as they are stored: RGB, grey or CMYK.

    Bit-identical to Pillow and about a fifth faster (tests/leukdetect/test_images.py).

    Args:
        least: where it is not 0, the picture may be smaller by eighths, but not below this many pixels a side.

    Raises:
        ImageError, or what libjpeg raises: they are truncated or corrupt, or take far too many scans.
    """
    _refuse_bomb(image, data)
    colours = _COLOURS[image.mode]
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, min_height=least, min_width=least)
    except ValueError as error:
        if kind := kinds.jpeg_process(data):
            raise UnsupportedImage(f"the content is {kind}, which is not decoded; {kinds.EXPORT}") from error
        if "subsampling" in str(error):  # such as 4:1:0: its interface does not know it, though the library does
            image.load()
            return image
        pixels = _forgiving(data, colours, least)
    if image.mode == "CMYK":
        return Image.frombuffer("CMYK", pixels.shape[1::-1], 255 - pixels)  # stored inverted, as Adobe does
    return Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])


def _forgiving(data: bytes, colours: str, least: int) -> np.ndarray:
    mended = _mended(data, colours)
    if b"\xff\xc2" not in mended:  # an end, if none is there; of a progressive one whole scans may be missing
        mended += b"\xff\xd9"
    try:
        return simplejpeg.decode_jpeg(mended, colours, min_height=least, min_width=least)
    except ValueError as error:
        complaint = str(error)
    # What is left over once a scan's pixels are all there, or scans in an odd order; damage before it is told of first.
    if "extraneous bytes before marker" in complaint or "progression" in complaint:
        return simplejpeg.decode_jpeg(mended, colours, min_height=least, min_width=least, strict=False)
    raise ImageError(f"the JPEG data is truncated or corrupt ({complaint})")


def _mended(data: bytes, colours: str) -> bytes:
    """Without junk between the header's segments, and without those that say nothing of pixels.

    A sequential scan says that it holds all 64 coefficients (some phones write 0 to 0), JFIF says its common version,
    and Adobe's segment a transform that exists.
    """
    parts, at, sequential = [data[:2]], 2, False
    for _ in range(_MAX_STEPS):
        at = data.find(b"\xff", at)
        if not 0 <= at <= len(data) - 4:
            break
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker < 0xDA:  # stuffed, filling, or has no segment
            at += 1
            continue
        sequential |= marker in (0xC0, 0xC1, 0xC9)
        if marker == 0xDA:
            return b"".join(parts) + (_whole_scans(data[at:]) if sequential else data[at:])
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        segment = data[at:end]
        if segment[4:9] == b"JFIF\0":
            segment = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
        elif segment[4:9] == b"Adobe" and len(segment) >= 16 and segment[15] > 2:
            segment = segment[:15] + (b"\2" if colours == "CMYK" else b"\1") + segment[16:]
        if not (0xE1 <= marker < 0xEE or marker in (0xEF, 0xFE)):
            parts.append(segment)
        at = end
    return data


def _whole_scans(scans: bytes) -> bytes:
    found, at = bytearray(scans), 0
    while (at := scans.find(_SCAN, at)) >= 0:
        end = at + 2 + int.from_bytes(scans[at + 2 : at + 4])
        if at + 6 <= end <= len(scans):
            found[end - 3 : end] = b"\0\x3f\0"
        at = max(end, at + 2)
    return bytes(found)


def _refuse_bomb(image: ImageFile.ImageFile, data: bytes) -> None:
    if not _may_have_many_scans(image, data):
        return
    scans = cost.scans(data)
    if scans * image.width * image.height > MAX_SCANNED_PIXELS:
        raise ImageError(f"the JPEG goes over its pixels in {scans} scans, far more than an image needs")


def _may_have_many_scans(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Progressive, arithmetic and multi-picture JPEGs; a film behind others holds the marker by chance."""
    if image.format == "MPO" or "progressive" in image.info:
        return True
    head = image.fp.tell() if image.fp else len(data)  # where Pillow stopped reading the header
    return data.find(_ARITHMETIC, 0, head) >= 0
