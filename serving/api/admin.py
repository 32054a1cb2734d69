"""POST /admin/reload and /admin/webhook: what an administrator or the registry asks for."""

import asyncio
import base64
import hashlib
import hmac
import time
from typing import Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from serving import logs, problems
from serving.inference.prediction import ModelIdentity, identity
from serving.models.updates import Result, Updates
from serving.request import auth
from serving.service import Service, of, received

WAIT_SECONDS = 10.0  # for a reload to end; a download from far away takes longer, and goes on
MAX_WEBHOOK_BYTES = 100_000
# MLflow signs ID.TIMESTAMP.BODY (mlflow/webhooks/delivery.py), as https://www.standardwebhooks.com has it.
SIGNATURE, DELIVERY, TIMESTAMP = "X-MLflow-Signature", "X-MLflow-Delivery-Id", "X-MLflow-Timestamp"
MAX_AGE_SECONDS = 300  # what is older, or as far ahead, may be a recording. A fresh one only makes us ask again

router = APIRouter(tags=["administration"])
_admin = Depends(auth.Required("admin"))

_WEBHOOK = {
    "parameters": [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string"}}
        for name in (SIGNATURE, DELIVERY, TIMESTAMP)
    ],
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
}


Outcome = Literal[Result, "under-way"]


class ReloadAnswer(BaseModel):
    """What became of a reload."""

    result: Outcome = Field(
        description="refused: the version did not pass its checks; failed: it, or the registry, could not be reached"
    )
    model: ModelIdentity = Field(description="the model in service now")
    note: str | None = Field(description="why it is not the one that the alias names")


class WebhookAnswer(BaseModel):
    """The registry will be asked."""

    result: Literal["accepted"] = "accepted"


@router.post(
    "/admin/reload",
    dependencies=[_admin],
    responses={202: {"model": ReloadAnswer, "description": "Under way"}, **problems.documented(401, 403, 409, 429)},
)
async def reload(request: Request, response: Response) -> ReloadAnswer:
    """Asks the registry now, and switches if the alias names another version.

    A version that was refused gets another chance. Where the alias moved back, the version before is in memory still.
    202: it takes longer; see `/health`.
    """
    service, before = of(request), of(request).models.champion.located.version
    done = asyncio.wrap_future(_updates(service).reload())
    outcome: Outcome
    try:
        outcome = await asyncio.wait_for(done, WAIT_SECONDS)
    except TimeoutError:
        outcome, response.status_code = "under-way", 202
    models = service.models
    logs.audit(request, "reload", result=outcome, before=before, after=models.champion.located.version)
    return ReloadAnswer(result=outcome, model=identity(models.champion), note=models.note)


@router.post(
    "/admin/webhook",
    status_code=202,
    responses=problems.documented(401, 403, 408, 409, 413, 415, 503),
    openapi_extra=_WEBHOOK,
)
async def webhook(request: Request) -> WebhookAnswer:
    """For MLflow's own webhooks (model_version_alias.created), signed with LEUKDETECT_WEBHOOK_SECRET.

    Whatever it tells of, the registry is asked now; nothing else of it is used.
    """
    service = of(request)
    secret = service.settings.webhook_secret
    if secret is None:
        detail = "Webhooks are not accepted here: set LEUKDETECT_WEBHOOK_SECRET to the secret that MLflow signs with."
        raise problems.ProblemError(403, "forbidden", "Not allowed", detail)
    async with received(request, MAX_WEBHOOK_BYTES) as content:
        _check_signature(request, content, secret.get_secret_value())
    _updates(service).reload()
    logs.audit(request, "webhook", delivery=request.headers.get(DELIVERY, "")[:100])
    return WebhookAnswer()


def _updates(service: Service) -> Updates:
    if service.updates is None:
        detail = "A file is served, which no registry can replace. Start with --model models:/NAME@ALIAS instead."
        raise problems.ProblemError(409, "nothing-to-reload", "Nothing to reload", detail)
    return service.updates


def _check_signature(request: Request, content: bytes, secret: str) -> None:
    """Raises:
    ProblemError: 401 where MLflow did not sign this with the secret, or not within the last minutes.
    """
    delivery, timestamp = (request.headers.get(name, "") for name in (DELIVERY, TIMESTAMP))
    signed = f"{delivery}.{timestamp}.".encode() + content
    expected = b"v1," + base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256))
    if not hmac.compare_digest(expected, request.headers.get(SIGNATURE, "").encode()):
        detail = (
            f"{SIGNATURE} is not that of this request. Is LEUKDETECT_WEBHOOK_SECRET the secret of MLflow's webhook?"
        )
        raise problems.ProblemError(401, "bad-signature", "The signature is wrong", detail)
    if not (timestamp.isdecimal() and len(timestamp) < 20 and abs(time.time() - int(timestamp)) <= MAX_AGE_SECONDS):
        detail = f"{TIMESTAMP} is more than {MAX_AGE_SECONDS} s away from this server's clock."
        raise problems.ProblemError(401, "stale", "Too old, or the clocks differ", detail)
