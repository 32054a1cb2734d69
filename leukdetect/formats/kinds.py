"""Names kinds of files that are not decoded, by their first bytes, and says what to do with each."""

from leukdetect.formats.errors import ImageError, UnsupportedImage

EXPORT = "export it as PNG or TIFF, 8 bits a channel"
_PHONE = "send JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible), or convert it to PNG"

# First bytes, where they stand, the kind, and what to do.
_MAGIC: tuple[tuple[bytes, int, str, str], ...] = (
    (b"GIF8", 0, "a GIF", "it has at most 256 colours; export the original as PNG"),
    (b"\xff\x0a", 0, "JPEG XL", EXPORT),
    (b"\0\0\0\x0cJXL ", 0, "JPEG XL", EXPORT),
    (b"\0\0\0\x0cjP  ", 0, "JPEG 2000", EXPORT),
    (b"\xff\x4f\xff\x51", 0, "JPEG 2000", EXPORT),
    (b"DICM", 128, "a DICOM file", "export its picture as PNG or TIFF"),
    (b"8BPS", 0, "a Photoshop file", EXPORT),
    (b"\x76\x2f\x31\x01", 0, "OpenEXR", EXPORT),
    (b"#?RADIANCE", 0, "Radiance HDR", EXPORT),
    (b"II\xbc", 0, "JPEG XR", EXPORT),
    (b"IIU\0", 0, "a camera's raw file", "develop it, and send JPEG or PNG"),
    (b"IIRO", 0, "a camera's raw file", "develop it, and send JPEG or PNG"),
    (b"FUJIFILM", 0, "a camera's raw file", "develop it, and send JPEG or PNG"),
    (b"ZISRAWFILE", 0, "a Zeiss CZI file", EXPORT),
    (b"\xda\xce\xbe\x0a", 0, "a Nikon ND2 file", EXPORT),
    (b"\x89HDF", 0, "an HDF5 file", EXPORT),
    (b"SIMPLE  =", 0, "a FITS file", EXPORT),
    (b"\x93NUMPY", 0, "a NumPy array", "send it as PNG"),
    (b"P5", 0, "PNM", EXPORT),
    (b"P6", 0, "PNM", EXPORT),
    (b"qoif", 0, "QOI", EXPORT),
    (b"%PDF", 0, "a PDF", "export the picture in it as PNG or TIFF"),
    (b"PK\x03\x04", 0, "a ZIP archive", "send the images in it"),
    (b"\x1f\x8b", 0, "compressed by gzip", "unpack it"),
    (b"<svg", 0, "an SVG drawing", "send the photograph"),
    (b"<!DOCTYPE html", 0, "a web page", "send the image that it shows"),
    (b"<html", 0, "a web page", "send the image that it shows"),
)
_BRANDS = {  # of ISO base media files, which begin with a box "ftyp"
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif"), ("HEIC", _PHONE)),
    **dict.fromkeys((b"avif", b"avis"), ("AVIF", _PHONE)),
    b"crx ": ("a camera's raw file", "develop it, and send JPEG or PNG"),
    **dict.fromkeys((b"isom", b"mp41", b"mp42", b"qt  "), ("a film", "send one of its pictures")),
}
_GENERAL = (b"mif1", b"msf1", b"miaf")  # brands that only say "an image"; the compatible ones tell which
_JPEG_FRAMES = {  # processes that libjpeg does not decode; ITU-T T.81, table B.1
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    0xCB: "lossless JPEG of arithmetic coding",
    0xF7: "JPEG-LS",
}


def unsupported(data: bytes, formats: str) -> ImageError:
    """The error that names what the bytes are; `formats` are those to send instead."""
    known = named(data)
    if known is None:
        error = UnsupportedImage(f"the content is not an image of a known type; send {formats}")
        error.named = False
        return error
    kind, remedy = known
    if kind in formats:
        return ImageError(f"the image's header is broken: {kind} that cannot be read")
    return UnsupportedImage(f"the content is {kind}, which is not decoded; {remedy}, or send {formats}")


def named(data: bytes) -> tuple[str, str] | None:
    """Kind and remedy of what these first bytes, 256 or more, begin; None: it is not known."""
    if data[4:8] == b"ftyp":
        brands = [data[at : at + 4] for at in (8, *range(16, min(len(data), int.from_bytes(data[:4]), 256), 4))]
        telling = [brand for brand in brands if brand not in _GENERAL]
        found = next((_BRANDS[brand] for brand in telling if brand in _BRANDS), None)
        return found or (("HEIF", _PHONE) if set(brands) & set(_GENERAL) else None)
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n") if data[:1] in b"\xef \t\r\n<" else data
    for magic, at, kind, remedy in _MAGIC:
        if start[at : at + len(magic)] == magic:
            return kind, remedy
    if data[:2] == b"\xff\xd8" and (process := jpeg_process(data)):
        return process, EXPORT
    return None


def jpeg_process(data: bytes) -> str | None:
    """A JPEG's process, if it is one that is not decoded."""
    at = 2
    for _ in range(10_000):
        at = data.find(b"\xff", at)
        if not 0 <= at <= len(data) - 5:
            break
        marker = data[at + 1]
        if marker in _JPEG_FRAMES:
            return _JPEG_FRAMES[marker]
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA):
            return None if data[at + 4] == 8 else f"a JPEG of {data[at + 4]} bits a sample"
        if marker == 0xDA:
            return None
        # Past a segment; what is no marker (a stuffed or filling byte, junk) is stepped over.
        at += 2 + int.from_bytes(data[at + 2 : at + 4]) if 0xC0 <= marker < 0xFF and not 0xD0 <= marker < 0xDA else 1
    return None
