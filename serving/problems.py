"""Errors as RFC 9457 problem details. No stack trace and nothing of the image is ever in one.

Under /v2 they have the Open Inference Protocol's form {"error": "…"}, since its clients read nothing else.
"""

from collections.abc import Mapping
from errno import ENOMEM
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from leukdetect import images
from leukdetect.apart import CostlyError
from leukdetect.decoding import TooLargeError
from leukdetect.formats.errors import NoMemoryError

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="what went wrong, for programs; about:blank when the status says it all")
    title: str = Field(description="the same in a few words")
    status: int
    detail: str = Field(description="what was wrong with this request, and what to do")
    request_id: str = Field(description="also in the header X-Request-Id and in the server's log")


class ProblemError(Exception):
    """Ends a request with a problem. `code` is a slug, "" where the status says it all; `detail` a sentence."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status, self.code, self.title, self.detail = status, code, title, detail
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


def body_too_large(max_bytes: int) -> ProblemError:
    """413."""
    detail = f"At most {max_bytes / 1e6:g} MB are accepted."
    return ProblemError(413, "body-too-large", "The request is too large", detail)


def overloaded(detail: str, retry_after: int = 1) -> ProblemError:
    """503: nothing is wrong with the request; it may be sent again in `retry_after` seconds."""
    return ProblemError(503, "overloaded", "The server is busy", detail, retry_after=retry_after)


def no_memory(error: Exception) -> ProblemError | None:
    """503 for an error that says that memory, or a thread, was not to be had; None for any other."""
    said = str(error)
    without = isinstance(error, MemoryError | NoMemoryError) or (isinstance(error, OSError) and error.errno == ENOMEM)
    if without or "can't start new thread" in said or "bad allocation" in said or "Failed to allocate" in said:
        return overloaded("There is no memory for this now. Try again in a second.")
    return None


def expired() -> ProblemError:
    """504: it waited past its deadline, and was not computed."""
    detail = "The image waited longer than its deadline allows. Try again, or allow more time with X-Deadline-Ms."
    return ProblemError(504, "expired", "Too late", detail, retry_after=1)


def plain(status: int, detail: str, headers: Mapping[str, str] | None = None) -> ProblemError:
    """A problem that its status says all of."""
    return ProblemError(status, "", HTTPStatus(status).phrase, detail, headers=headers)


def failed() -> ProblemError:
    """500: the server's own fault. What it was is in the log, under the request's id."""
    detail = "The server failed on this request. Quote the request id to whoever runs it."
    return ProblemError(500, "failed", "The server failed", detail)


def of_image(error: images.ImageError) -> ProblemError:
    """413, 415 or 422: why the upload is no usable image."""
    if isinstance(error, TooLargeError):
        return ProblemError(413, "too-many-pixels", "The image is too large", error.sentence)
    if isinstance(error, images.UnsupportedImage):
        title = "Not a supported kind of image" if error.named else "Not an image of a known type"
        return ProblemError(415, "unsupported-image", title, error.sentence)
    if isinstance(error, CostlyError):
        return ProblemError(422, "costly-image", "The image costs too much", error.sentence)
    return ProblemError(422, "broken-image", "The image cannot be read", error.sentence)


def details(request_id: str, error: ProblemError) -> ProblemDetails:
    """The problem as an answer tells it."""
    return ProblemDetails(
        type=f"urn:leukdetect:problem:{error.code}" if error.code else "about:blank",
        title=error.title,
        status=error.status,
        detail=error.detail,
        request_id=request_id,
    )


def answer(request: Request, error: ProblemError) -> JSONResponse:
    """The answer to a request that ended with a problem."""
    request.state.reason = error.code  # for the metrics
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if path == "/v2" or path.startswith("/v2/"):
        return JSONResponse({"error": error.detail}, error.status, error.headers)
    content = details(request.state.request_id, error).model_dump()
    return JSONResponse(content, error.status, error.headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Makes every error that a route or the framework raises a problem. (What nobody expected: `middleware`.)"""

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else {}
        if error.status_code == 405:
            allowed = headers.get("Allow", "GET")  # of static files the framework tells none
            # Every GET route answers HEAD: `middleware`.
            headers["Allow"] = "GET, HEAD" if allowed in ("GET", "HEAD, GET") else allowed
        return answer(request, plain(error.status_code, error.detail, headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Only where and what: pydantic's own report would repeat the input.
        faults = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        return answer(request, plain(422, "; ".join(faults)))


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The `responses` of a route that can end with these problems, for OpenAPI."""
    schema = ProblemDetails.model_json_schema()
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }
