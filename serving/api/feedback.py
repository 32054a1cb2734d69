"""POST /feedback: what people confirmed about answers."""

import sqlite3

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving import logs, problems
from serving.observability.feedback_store import Confirmed
from serving.request import auth
from serving.service import of, received

MAX_BODY_BYTES = 10_000

router = APIRouter(tags=["predictions"], dependencies=[Depends(auth.Required("predict"))])


class Label(BaseModel):
    """A confirmed label."""

    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(
        pattern="^[0-9A-Za-z_-]{1,64}$", description="of the prediction", examples=["4b825dc642cb6eb9a060e54bf8d69288"]
    )
    class_: str = Field(alias="class", max_length=100, description="the key of the class that was confirmed")


@router.post(
    "/feedback",
    responses=problems.documented(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": Label.model_json_schema()}}}
    },
)
async def confirm(request: Request) -> Confirmed:
    """Keeps a confirmed label for a prediction, by the prediction's request id. The last one counts.

    For the key that asked, or one of role reviewer. The class is one of the version's that answered.
    """
    service = of(request)
    # Not a parameter of the function: the framework would read a body of any size.
    async with received(request, MAX_BODY_BYTES) as content:
        label = _label(content)
    served = [each.key for each in service.models.champion.contract.classes]
    try:
        confirmed = await service.feedback.confirm(label.request_id, label.class_, request.state.api_key, served)
    except (sqlite3.Error, OSError) as error:
        detail = "Feedback cannot be kept now. Try again later."
        title = "Feedback is unavailable"
        raise problems.ProblemError(503, "feedback-unavailable", title, detail, retry_after=60) from error
    logs.audit(request, "feedback", prediction=label.request_id)
    return confirmed


def _label(content: bytes) -> Label:
    try:
        return Label.model_validate_json(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()]
        raise problems.ProblemError(422, "broken-label", "Not a confirmed label", "; ".join(faults) + ".") from error
