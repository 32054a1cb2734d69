"""From a request's body to an image file's bytes, and the look at their header: everything cheap comes first."""

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving import images
from serving.problems import ProblemError

FIELD = "file"
# A strip of a few rows can hold millions of columns within max_pixels; resizing it would take gigabytes.
MAX_SIDE = 32_768


async def read(request: Request, max_bytes: int) -> bytes:
    """The uploaded image file: the multipart field `file`, or else the whole body.

    Raises:
        ProblemError: 413 when the body is longer than `max_bytes`, declared or in fact; 400 or 422 for a form that
            is broken or does not hold exactly one file.
        ClientDisconnect: the client went away.
    """
    body = await _body(request, max_bytes)
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        return body
    files = _files(body, options.get(b"boundary", b""))
    if len(files) != 1:
        detail = f"The form has {len(files)} fields named '{FIELD}'; send exactly one, with one image."
        raise ProblemError(422, "one-image", "One image a request", detail)
    return files[0]


def check(data: bytes, max_pixels: int) -> images.Header:
    """Refuses by the header alone what is no image, or one too large to decode.

    Raises:
        ProblemError: 415 for another type, 422 for a broken header, 413 for too many pixels.
    """
    try:
        header = images.header(data)
    except images.ImageError as error:
        raise unusable(error) from error
    if header.width * header.height > max_pixels or max(header.width, header.height) > MAX_SIDE:
        detail = (
            f"The image has {header.width} × {header.height} pixels; at most {max_pixels / 1e6:g} megapixels "
            f"and {MAX_SIDE} pixels a side are accepted. Crop it or make it smaller."
        )
        raise ProblemError(413, "too-many-pixels", "The image is too large", detail)
    return header


def unusable(error: images.ImageError) -> ProblemError:
    """The problem that says why the bytes are no usable image."""
    detail = str(error)[0].upper() + str(error)[1:] + "."
    if isinstance(error, images.UnsupportedImage):
        return ProblemError(415, "unsupported-image", "Not an image of a known type", detail)
    return ProblemError(422, "broken-image", "The image cannot be read", detail)


async def _body(request: Request, max_bytes: int) -> bytes:
    too_large = ProblemError(
        413, "body-too-large", "The request is too large", f"At most {max_bytes / 1e6:g} MB are accepted."
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _files(body: bytes, boundary: bytes) -> list[bytes]:
    """The contents of every part named `file`. In memory: the framework's own parser would spool them to disk."""
    files: list[bytearray] = []
    name, value, wanted = bytearray(), bytearray(), False

    def on_part_begin() -> None:
        nonlocal wanted
        wanted = False

    def on_header_field(data: bytes, start: int, end: int) -> None:
        name.extend(data[start:end])

    def on_header_value(data: bytes, start: int, end: int) -> None:
        value.extend(data[start:end])

    def on_header_end() -> None:
        nonlocal wanted
        if name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(value))
            wanted = options.get(b"name") == FIELD.encode()
        name.clear()
        value.clear()

    def on_headers_finished() -> None:
        if wanted:
            files.append(bytearray())

    def on_part_data(data: bytes, start: int, end: int) -> None:
        if wanted:
            files[-1] += data[start:end]

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": on_part_begin,
                "on_header_field": on_header_field,
                "on_header_value": on_header_value,
                "on_header_end": on_header_end,
                "on_headers_finished": on_headers_finished,
                "on_part_data": on_part_data,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        detail = "The multipart form is broken. Send a form with one file, or the image itself as the body."
        raise ProblemError(400, "broken-form", "The form cannot be read", detail) from error
    return [bytes(file) for file in files]
