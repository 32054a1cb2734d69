"""From a request's body to an image file's bytes, and the look at their header: everything cheap comes first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from serving.problems import ProblemError, body_too_large, overloaded
from serving.request.budget import Budget
from serving.request.deadline import while_connected

FIELD = "file"
_FORM = b"multipart/form-data"
MAX_BOUNDARY = 70  # RFC 2046
MAX_HEAD_BYTES = 8192  # of one part
MAX_PARTS = 1000  # other fields included; far more than any client means to send, and few enough to look at
COPIES = 2  # of a body: chunks are joined, and files copied out of their form
LARGE_BYTES = 2**23  # a longer body is put together in a thread, which releases the interpreter meanwhile


class Buffered:
    """How many bytes of bodies are in memory, over all requests: of their own, and as a part of the server's budget."""

    def __init__(self, most: int, budget: Budget) -> None:
        self._most, self._budget = most, budget
        self._held = 0

    def take(self, count: int) -> None:
        """Takes the place of a body's chunk; raises ProblemError (503) where they would be too many together."""
        if self._held + count > self._most:
            raise overloaded("Too many uploads are under way. Try again in a second.")
        self._budget.take(COPIES * count)
        self._held += count

    def give_back(self, count: int) -> None:
        """Frees the place of bodies that are answered."""
        self._budget.give_back(COPIES * count)
        self._held -= count


@asynccontextmanager
async def body(request: Request, buffered: Buffered, max_bytes: int, seconds: float) -> AsyncIterator[bytes]:
    """The request's body, while the block lasts, which is cancelled when the client goes away.

    Raises:
        ProblemError: 415 when it is compressed; 413 when it is longer than `max_bytes`, declared or in fact; 408 when
            it takes the client longer than `seconds` to send; 503 where too many bodies are held already.
        ClientDisconnect: the client went away.
    """
    if any(value.strip().lower() not in ("", "identity") for value in request.headers.getlist("content-encoding")):
        detail = "Send the body as it is, without Content-Encoding: image files are compressed already."
        raise ProblemError(415, "compressed", "Compressed", detail, headers={"Accept-Encoding": "identity"})
    if int(request.headers.get("content-length", 0)) > max_bytes:  # `heads` has checked that it is a number
        raise body_too_large(max_bytes)
    chunks: list[bytes] = []
    held = 0
    try:
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    buffered.take(len(chunk))
                    held += len(chunk)
                    chunks.append(chunk)
                    if held > max_bytes:
                        raise body_too_large(max_bytes)
        except TimeoutError as error:
            detail = f"The whole request must arrive within {seconds:g} s."
            raise ProblemError(408, "too-slow", "The request took too long to arrive", detail) from error
        content = b"".join(chunks) if held < LARGE_BYTES else await asyncio.to_thread(b"".join, chunks)
        chunks.clear()  # else it would be in memory twice while it is answered
        with while_connected(request):
            yield content
    finally:
        buffered.give_back(held)


def one_file(request: Request, content: bytes) -> bytes:
    """The uploaded image file: the multipart field `file`, or else the whole body.

    Raises ProblemError: 400 or 422 for a form that is broken or does not hold exactly one file.
    """
    files = _files(request, content)
    if files is None:
        return content
    if len(files) != 1:
        detail = f"The form has {len(files)} fields named '{FIELD}'; send exactly one, with one image."
        raise ProblemError(422, "one-image", "One image a request", detail)
    return files[0]


def all_files(request: Request, content: bytes) -> list[bytes]:
    """Every multipart field `file`, in the order in which they were sent.

    Raises ProblemError: 415 where the body is no form; 400 for a form that is broken.
    """
    files = _files(request, content)
    if files is None:
        detail = f"Send a multipart form with one field named '{FIELD}' for each image."
        raise ProblemError(415, "no-form", "Not a multipart form", detail)
    return files


def _files(request: Request, body: bytes) -> list[bytes] | None:
    """The contents of every part named `file` (RFC 2046, 5.1.1); None where the body is no form.

    The body is in memory and only searched for the boundary; a parser of streams takes several times as long, and the
    framework's own would spool the files to disk.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != _FORM:
        return None
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise _broken_form()
    delimiter = b"\r\n--" + boundary
    begin = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)  # nothing, or a preamble, before the first
    if begin == -1:
        raise _broken_form()
    at = begin + len(delimiter)
    files: list[bytes] = []
    for _ in range(MAX_PARTS):
        if body.startswith(b"--", at):
            return files
        head_end = body.find(b"\r\n\r\n", at, at + MAX_HEAD_BYTES)
        end = body.find(delimiter, head_end + 2)  # an empty part's delimiter begins with the head's last CRLF
        if not body.startswith(b"\r\n", at) or head_end < 0 or end < 0:
            raise _broken_form()
        if _name(body[at + 2 : head_end]) == FIELD.encode():
            files.append(body[head_end + 4 : end])
        at = end + len(delimiter)
    raise _broken_form()


def _name(head: bytes) -> bytes | None:
    """What a part's header calls it."""
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            return parse_options_header(value.strip())[1].get(b"name")
    return None


def _broken_form() -> ProblemError:
    detail = "The multipart form is broken. Send a form with one file, or the image itself as the body."
    return ProblemError(400, "broken-form", "The form cannot be read", detail)
