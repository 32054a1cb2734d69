"""From a request's body to files."""

import asyncio
import os
import tracemalloc
from contextlib import suppress

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from serving.problems import ProblemError
from serving.request import upload
from serving.request.budget import Budget

BOUNDARY = b"frontier"


def form(parts: list[tuple[str, bytes]], preamble: bytes = b"", epilogue: bytes = b"") -> bytes:
    """A multipart body as curl sends it."""
    lines = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n%b\r\n'
        % (BOUNDARY, name.encode(), content)
        for name, content in parts
    ]
    return b"%b%b--%b--\r\n%b" % (preamble, b"".join(lines), BOUNDARY, epilogue)


def files_of(body: bytes, boundary: bytes = BOUNDARY) -> list[bytes]:
    headers = [(b"content-type", b"multipart/form-data; boundary=" + boundary)]
    return upload.all_files(Request({"type": "http", "headers": headers}), body)


CONTENT = st.lists(st.sampled_from([b"\r\n", b"--", b"\r", b"-", b"frontie", b"\xff\xd8", b""])).map(b"".join)


@given(st.lists(st.tuples(st.sampled_from(["file", "files", "note"]), CONTENT), max_size=5))
def test_a_form_gives_the_files_that_were_put_into_it(parts: list[tuple[str, bytes]]) -> None:
    expected = [content for name, content in parts if name == "file"]
    assert files_of(form(parts)) == expected
    assert files_of(form(parts, b"preamble\r\n", b"epilogue")) == expected


@given(st.binary(), st.integers(0, 200), st.integers(0, 200))
def test_a_damaged_form_is_a_problem_or_gives_files(rubbish: bytes, start: int, end: int) -> None:
    body = form([("file", b"one"), ("file", b"two")])
    with suppress(ProblemError):
        assert len(files_of(body[:start] + rubbish + body[start + end :])) <= 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        form([("file", b"x")])[:-4],
        form([("file", b"x")]).replace(b"\r\n\r\n", b"\r\n"),
        form([("file", b"x")]).replace(b"name", b"x" * upload.MAX_HEAD_BYTES),
        form([("note", b"")] * (upload.MAX_PARTS + 1)),
    ],
    ids=["empty", "no end", "no blank line", "a long head", "too many parts"],
)
def test_a_broken_form_is_refused(body: bytes) -> None:
    with pytest.raises(ProblemError) as refused:
        files_of(body)
    assert (refused.value.status, refused.value.code) == (400, "broken-form")


@pytest.mark.parametrize("boundary", [b"", b"x" * (upload.MAX_BOUNDARY + 1)])
def test_a_boundary_that_cannot_be_is_refused(boundary: bytes) -> None:
    with pytest.raises(ProblemError):
        files_of(form([("file", b"x")]).replace(BOUNDARY, boundary), boundary)


@pytest.mark.parametrize("size", [upload.LARGE_BYTES // 4, 2 * upload.LARGE_BYTES], ids=["small", "large"])
def test_a_body_in_pieces_arrives_whole_and_is_in_memory_once(size: int) -> None:
    pieces = 8
    buffered = upload.Buffered(size, Budget(2 * size))

    async def exchange() -> None:
        sent = []

        async def receive() -> Message:
            sent.append(os.urandom(size // pieces))
            return {"type": "http.request", "body": sent[-1], "more_body": len(sent) < pieces}

        request = Request({"type": "http", "headers": []}, receive)
        before = tracemalloc.get_traced_memory()[0]
        async with upload.body(request, buffered, size, 30) as content:
            whole = content == b"".join(sent)
            sent.clear()
            held = tracemalloc.get_traced_memory()[0] - before
            assert whole
            assert held < 1.5 * size
            with pytest.raises(ProblemError):
                buffered.take(1)

    tracemalloc.start()
    try:
        asyncio.run(exchange())
    finally:
        tracemalloc.stop()
    buffered.take(size)  # all of it was given back
