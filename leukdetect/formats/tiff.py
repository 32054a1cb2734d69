"""TIFF: the full page, samples of any depth and layout, and the names of what is not decoded."""

import io
import math

import numpy as np
from PIL import Image

from leukdetect.formats import depth, tiff_directory
from leukdetect.formats import tiff_directory as tag
from leukdetect.formats.errors import ImageError, UnsupportedImage

# A tile is decoded whole, however little of it lies within the image.
MAX_TILE_PIXELS = 2**22
_MAX_SAMPLES = 8  # a pixel
_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, deflate, PackBits, LZMA, Zstandard: plain samples
_HORIZONTAL, _FLOATING = 2, 3
_GREY, _COLOUR, _CMYK, _YCBCR = (0, 1), 2, 5, 6
_COMPRESSIONS = {
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    **{50001: "WebP", 34892: "a camera's lossy raw data", 34713: "a camera's raw data", 34887: "LERC"},
}
_PHOTOMETRICS = {
    **dict.fromkeys((32803, 34892), "a camera's raw data"),
    **dict.fromkeys((8, 9, 10), "CIELab"),
    **dict.fromkeys((32844, 32845), "LogLuv"),
    **{4: "a mask"},
}
_EXPORT = "export it as 8-bit RGB without it, or send PNG"
_SAY = (
    "say it in the TIFF's tags SMinSampleValue and SMaxSampleValue (or MaxSampleValue), "
    "or scale them to 8 bits a channel"
)
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Tiff:
    """The page that is shown. `width` and `height` are those of the upright picture."""

    def __init__(self, data: bytes) -> None:
        found = tiff_directory.pages(data)
        self._data, self._page, self._first = data, tiff_directory.full(found), found[0]
        page = self._page
        self._stored = page.whole(tag.WIDTH), page.whole(tag.LENGTH)
        if min(self._stored) <= 0:
            raise ImageError("the TIFF does not say how large it is")
        self.orientation = page.whole(tag.ORIENTATION, 1)
        self.width, self.height = self._stored[:: -1 if self.orientation in (5, 6, 7, 8) else 1]
        self.profile = page.raw(tag.PROFILE)
        self.bits = [int(each) for each in page.values(tag.BITS)] or [1]
        self._samples = page.whole(tag.SAMPLES, 1)
        self._photometric = page.whole(tag.PHOTOMETRIC)
        self._extra = [int(each) for each in page.values(tag.EXTRA)]
        self._format = page.whole(tag.FORMAT, 1)
        self._refuse()

    @property
    def plain(self) -> bool:
        """Pillow reads it rightly: 8 bits a sample or fewer, side by side, or of a kind of its own."""
        if self._photometric not in (*_GREY, _COLOUR, _CMYK) or self._page.whole(tag.COMPRESSION, 1) not in _LOSSLESS:
            return True
        if self._samples == 1:
            return self._format == 1 and self.bits[0] in (1, 2, 4, 8)
        side_by_side = self._page.whole(tag.PLANES, 1) == 1 and self._format == 1 and self.bits[0] == 8
        known = [[], [0]] if self._photometric == _CMYK else [[], [0], [1], [2]]
        return side_by_side and self._photometric != 0 and self._samples - self._colours() <= 1 and self._extra in known

    @property
    def mode(self) -> str:
        """Pillow's name for the layout of what is not `plain`."""
        if self._colours() == 1 and self.bits[0] == 16 and not self._extra:
            return "I;16"
        return {1: "L", 3: "RGB", 4: "CMYK"}[self._colours()] + "A" * bool(set(self._extra[:1]) & {1, 2})

    def as_pillow_reads_it(self) -> bytes:
        """The file with its full page first, classic, not turned, its palette of 16 bits; itself if it is that."""
        page, tags, palette = self._page, dict(self._page.tags), self._page.values(tag.PALETTE)
        for each in (tag.ORIENTATION, tag.EXIF):  # Pillow turns on loading, and writes EXIF anew, which may fail
            tags.pop(each, None)
        narrow = bool(palette) and max(palette) < 256  # of 8 bits, as some programs write
        if narrow:
            tags[tag.PALETTE] = 3, np.array(palette, "u2") * 257
        apart = self._samples == 1 and page.whole(tag.PLANES, 1) == 2  # one plane, which Pillow then mistakes
        if apart:
            del tags[tag.PLANES]
        first = self._data[:4] in MAGIC[:2] and page is self._first
        if first and self.orientation == 1 and not (narrow or apart):
            return self._data
        return tiff_directory.view(self._data, page.order, tags)

    def unknown(self) -> UnsupportedImage:
        """The error for a layout that Pillow does not know."""
        return UnsupportedImage(
            f"the TIFF has an unknown layout (photometric interpretation {self._photometric}, {self._samples} samples "
            f"of {self.bits[0]} bits, compression {self._page.whole(tag.COMPRESSION, 1)}); save it as plain 8-bit RGB"
        )

    def decode(self) -> Image.Image:
        """The pixels as they are stored, 8 bits a sample: L, LA, RGB, RGBA or CMYK.

        Raises ImageError: they are corrupt, or of a range that nobody states.
        """
        colours, samples = self._colours(), self._read()
        alpha = self._extra[:1] if self._extra[:1] in ([1], [2]) else []
        if not self._extra and self._samples > colours:
            alpha = [2]  # one more sample than colours need, of which the file says nothing: Pillow's reading
        samples = samples[..., : colours + len(alpha)]
        pixels = depth.eight_bits(samples, self.bits[0], self._range(), _SAY, colours)
        if self._photometric == 0:
            pixels[..., 0] = 255 - pixels[..., 0]
        if colours == 4:
            return Image.frombuffer("CMYK", pixels.shape[1::-1], np.ascontiguousarray(pixels[..., :4]))
        if not alpha:
            return Image.fromarray(pixels[..., 0] if colours == 1 else pixels)
        straight, premultiplied = ("LA", "La") if colours == 1 else ("RGBA", "RGBa")
        mode = premultiplied if alpha == [1] else straight
        return Image.frombuffer(mode, pixels.shape[1::-1], np.ascontiguousarray(pixels)).convert(straight)

    def _colours(self) -> int:
        return {_COLOUR: 3, _CMYK: 4}.get(self._photometric, 1)

    def _range(self) -> depth.Range:
        """What the file says of its samples' range; of 8 bits nobody heeds it."""
        page, nominal = self._page, 2 ** (self.bits[0] - (self._format == 2)) - 1
        if self.bits[0] <= 8:
            return depth.Range()
        black, white = (max(page.values(each), default=None) for each in (tag.SMIN, tag.SMAX))
        if white is None and self._format != 3:
            # By its definition the largest value that is used: where that is not of a smaller depth, a mere statistic.
            largest = max(page.values(tag.MAX_SAMPLE), default=0)
            significant = _significant(self._first.raw(tag.DESCRIPTION))
            if largest:
                white = largest if largest <= nominal // 4 else nominal
            elif 0 < significant < self.bits[0]:
                white = 2**significant - 1
        return depth.Range(black, white)

    def _refuse(self) -> None:
        page, compression = self._page, self._page.whole(tag.COMPRESSION, 1)
        many, colours = len(set(self.bits)) > 1, self._colours()
        if compression in _COMPRESSIONS:
            raise UnsupportedImage(f"the TIFF holds {_COMPRESSIONS[compression]}, which is not decoded; {_EXPORT}")
        if name := _PHOTOMETRICS.get(self._photometric):
            raise UnsupportedImage(f"the TIFF holds {name}, which is not decoded; {_EXPORT}")
        if compression in (6, 7) and self.bits[0] != 8:
            raise UnsupportedImage(f"the TIFF holds a JPEG of {self.bits[0]} bits a sample; {_EXPORT}")
        if colours > 1 and compression in _LOSSLESS and (self._format == 3 or self.bits[0] > 16):
            kind = "floats" if self._format == 3 else "integers"
            raise UnsupportedImage(
                f"the TIFF holds colours of {self.bits[0]}-bit {kind}, which are not decoded; scale them to 8 bits"
            )
        if self._format in (5, 6):
            raise UnsupportedImage("the TIFF holds complex numbers, which are no picture; scale their sizes to 8 bits")
        if self._photometric == _YCBCR and compression == 1 and page.values(tag.CHROMA)[:2] != [1, 1]:
            raise UnsupportedImage(f"the TIFF holds YCbCr without compression, which is not decoded; {_EXPORT}")
        if compression in _LOSSLESS and (many or self._samples > _MAX_SAMPLES or self._samples < colours):
            raise UnsupportedImage(
                f"the TIFF has {self._samples} samples of {self.bits} bits a pixel, an unknown layout; save it as RGB"
            )
        if colours == 1 and self._photometric in _GREY and self._samples > 1 and len(self._extra) != self._samples - 1:
            raise ImageError(
                f"the TIFF has {self._samples} samples a pixel and does not say which colours they are; save it as RGB"
            )
        if compression == 32773 and page.whole(tag.PREDICTOR, 1) != 1:
            raise ImageError(
                "the TIFF names a predictor beside PackBits, which has none; save it with another compression"
            )
        sides = [page.whole(each) for each in (tag.TILE_WIDTH, tag.TILE_LENGTH)]
        if math.prod(sides) > max(MAX_TILE_PIXELS, math.prod(self._stored)):
            raise ImageError("the TIFF's tiles are far larger than the image that they are to show")

    def _read(self) -> np.ndarray:
        """The samples [H, W, samples a pixel] as numbers, all of them."""
        if self._page.whole(tag.PLANES, 1) == 2 and self._samples > 1:
            return np.concatenate([self._plane(number, 1) for number in range(self._samples)], axis=2)
        return self._plane(None, self._samples)

    def _plane(self, number: int | None, samples: int) -> np.ndarray:
        """One plane [H, W, samples], or all of them where they are not apart: its bytes as if they were grey pixels."""
        page, (width, height), bits = self._page, self._stored, self.bits[0]
        if tiled := tag.TILES in page.tags:
            across, down = page.whole(tag.TILE_WIDTH), page.whole(tag.TILE_LENGTH)
            places = tag.TILES, tag.TILE_BYTES
        else:  # a strip is a tile as wide as the image
            across, down = width, min(page.whole(tag.ROWS, height) or height, height)
            places = tag.STRIPS, tag.STRIP_BYTES
        if not across or not down or (tiled and across * samples * bits % 8):
            raise ImageError("the TIFF's tiles have no size")
        columns = -(-width // across)
        count = columns * -(-height // down)
        segment = -(-across * samples * bits // 8)  # bytes of a row of a strip or a tile
        layout = {
            tag.WIDTH: segment * columns,
            tag.LENGTH: height,
            tag.BITS: 8,
            tag.COMPRESSION: page.whole(tag.COMPRESSION, 1),
            tag.PHOTOMETRIC: 1,
            tag.FILL_ORDER: page.whole(tag.FILL_ORDER, 1),
            tag.SAMPLES: 1,
        }
        layout |= {tag.TILE_WIDTH: segment, tag.TILE_LENGTH: down} if tiled else {tag.ROWS: down}
        grey = {each: (4, np.array([value], "u4")) for each, value in layout.items()}
        for each in places:
            if each in page.tags:
                kind, values = page.tags[each]
                grey[each] = kind, values[(number or 0) * count :][:count]
        if places[0] not in grey or len(grey[places[0]][1]) < count:
            raise ImageError("the TIFF does not say where all of its pixels are")
        with Image.open(io.BytesIO(tiff_directory.view(self._data, page.order, grey)), formats=("TIFF",)) as image:
            stored = np.asarray(image)
        numbers = self._numbers(stored.reshape(height, columns, segment), samples)[:, :, :across]
        return numbers.reshape(height, columns * across, samples)[:, :width]

    def _numbers(self, segments: np.ndarray, samples: int) -> np.ndarray:
        """Bytes [H, columns, bytes] to numbers [H, columns, pixels, samples], with the predictor undone."""
        page, bits = self._page, self.bits[0]
        predictor = page.whole(tag.PREDICTOR, 1) if page.whole(tag.COMPRESSION, 1) != 1 else 1
        height, columns, _ = segments.shape
        if bits not in (8, 16, 32, 64) or (self._format == 3 and bits == 8):
            if bits > 16 or self._format != 1 or predictor != 1:
                raise UnsupportedImage(f"the TIFF holds samples of {bits} bits, which are not decoded; {_EXPORT}")
            return _unpacked(segments, bits, samples)
        kind = {2: "i", 3: "f"}.get(self._format, "u")
        if predictor == _FLOATING:
            summed = np.cumsum(segments.reshape(height, columns, -1, samples), axis=2, dtype=np.uint8)
            planes = summed.reshape(height, columns, bits // 8, -1)  # the most significant bytes first
            numbers = np.ascontiguousarray(planes.swapaxes(2, 3)).view(f">{kind}{bits // 8}")
        else:
            numbers = np.ascontiguousarray(segments).view(f"{page.order}{'u' if predictor == 2 else kind}{bits // 8}")
        numbers = numbers.reshape(height, columns, -1, samples)
        if predictor == _HORIZONTAL:
            numbers = np.cumsum(numbers, axis=2, dtype=numbers.dtype.newbyteorder("="))
            numbers = numbers.view(f"{kind}{bits // 8}")
        return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _unpacked(segments: np.ndarray, bits: int, samples: int) -> np.ndarray:
    """Numbers of any number of bits, the most significant first, without a gap between them."""
    height, columns, size = segments.shape
    count = size * 8 // bits // samples * samples
    numbers = np.empty((height, columns, count), np.uint16)
    for row in range(height):
        ones = np.unpackbits(segments[row], axis=1)[:, : count * bits].reshape(columns, count, bits)
        numbers[row] = ones @ (1 << np.arange(bits - 1, -1, -1, dtype=np.uint16))
    return numbers.reshape(height, columns, -1, samples)


def _significant(description: bytes) -> int:
    """How many bits OME-XML says that a sample uses; 0: it does not."""
    found = description.partition(b'SignificantBits="')[2][:2].rstrip(b'"')
    return int(found) if found.isdigit() else 0
