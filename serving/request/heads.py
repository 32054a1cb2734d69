"""What a request's head must be for its end to be beyond doubt (RFC 9112): else one request could be read as two."""

import re

from serving.problems import ProblemError

MAX_DIGITS = 19  # of a Content-Length; int() itself refuses thousands of them
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]*)(:[0-9]*)?", re.ASCII)  # RFC 9110, 7.2


def malformed(detail: str = "What was sent is no HTTP/1.1 request.") -> ProblemError:
    """400, after which nothing of the connection can be understood."""
    return ProblemError(400, "bad-request", "Not a request", detail)


def check(method: str, version: str, headers: list[tuple[bytes, bytes]]) -> int:
    """The length of the body as its head tells it, 0 where there is none or it comes in chunks.

    The parser has refused what RFC 9112 calls malformed: two lengths, a length beside chunks, folded lines, bare LF.

    Raises ProblemError: 400, 501 or 505 where a head that can be parsed is still not to be trusted.
    """
    if version not in ("1.0", "1.1"):
        raise ProblemError(505, "http-version", "Not this version", "This server speaks HTTP/1.1.")
    if method == "CONNECT":
        raise ProblemError(501, "no-proxy", "No proxy", "This server is no proxy, and opens no tunnels.")
    length, hosts, coded = 0, 0, False
    for name, value in headers:
        if name == b"content-length":
            digits = value.strip()
            if len(digits) > MAX_DIGITS:
                raise malformed("Content-Length has too many digits.")
            length = int(digits)
        elif name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value.strip()):
                raise malformed("Host must be a host, and a port where there is one.")
        elif name == b"transfer-encoding":
            if version == "1.0":
                raise malformed("HTTP/1.0 has no Transfer-Encoding; send a Content-Length.")
            if coded or value.strip().lower() != b"chunked":
                detail = "The only Transfer-Encoding that is read here is chunked, once."
                raise ProblemError(501, "transfer-encoding", "Not this transfer coding", detail)
            coded = True
    if hosts > 1 or (version == "1.1" and not hosts):
        raise malformed("A request has one header Host.")
    return length
