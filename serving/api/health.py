"""What the server says of itself: health and probes, the model, metrics."""

import json
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from leukdetect.answer import disclaimer
from leukdetect.contract import DATASHEET_FILE, METRICS_FILE, MODEL_CARD_FILE, REPORT_FILE
from leukdetect.model_file import Model
from serving import problems
from serving.api.schemas import Health, ModelAnswer, State
from serving.inference.prediction import identity
from serving.service import Service, of

router = APIRouter(tags=["state"])


@router.get("/health")
async def health(request: Request) -> Health:
    """The status a person wants: which model serves, and how it is doing."""
    service = of(request)
    models = service.models
    champion, previous, challenger = models.champion, models.previous, models.challenger
    contract = champion.contract
    notes = [note for note in (models.note, _dead(service)) if note]
    return Health(
        status="stopping" if service.draining else "degraded" if notes else "ok",
        note=" ".join(notes) or None,
        model=identity(champion),
        previous=identity(previous) if previous else None,
        challenger=identity(challenger) if challenger else None,
        classes=[{"key": each.key, "label": each.label, "malignant": each.malignant} for each in contract.classes],
        subject=contract.wording.subject,
        operating_point=contract.thresholds.malignant,
        uptime_seconds=round(time.monotonic() - service.since, 1),
        queue_depth=service.engine.depth,
        estimated_wait_ms=round(service.engine.estimated_wait * 1000, 1),
        threads=champion.threads,
        intended_use=contract.intended_use,
        disclaimer=disclaimer(contract),
    )


@router.get("/livez", responses=problems.documented(503))
async def livez(request: Request) -> State:
    """The process answers, and all of its threads run; where one does not, only a restart helps."""
    if dead := _dead(of(request)):
        raise problems.ProblemError(503, "dead", "Not alive", dead)
    return State()


@router.get("/readyz", responses=problems.documented(503))
async def readyz(request: Request) -> State:
    """Send requests here: the model is warm, its thread alive, and nobody asked to stop. Overload changes nothing."""
    if not of(request).ready:
        raise problems.ProblemError(503, "not-ready", "Not ready", "The server is stopping.")
    return State()


@router.get("/model")
async def model(request: Request) -> ModelAnswer:
    """The model in service: its contract, the metrics it was registered with, its model card."""
    champion = of(request).models.champion
    folder = _folder(champion)
    metrics, card = _text(folder / METRICS_FILE), _text(folder / MODEL_CARD_FILE)
    return ModelAnswer(
        model=identity(champion),
        contract=champion.contract.model_dump(mode="json", exclude={"golden"}),
        metrics=_json(metrics) if metrics else None,
        model_card=card,
    )


@router.get("/model/report", response_class=HTMLResponse, responses=problems.documented(404))
async def report(request: Request) -> HTMLResponse:
    """The evaluation of the model in service as one page: model card, plots, datasheet."""
    return _page(of(request).models.champion, REPORT_FILE, "report")


@router.get("/model/datasheet", response_class=HTMLResponse, responses=problems.documented(404))
async def datasheet(request: Request) -> HTMLResponse:
    """The sheet of the data that the model in service learned from: origin, licence, splits, what to beware of."""
    return _page(of(request).models.champion, DATASHEET_FILE, "datasheet")


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(generate_latest(of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _dead(service: Service) -> str | None:
    names = ", ".join(service.dead)
    return f"Background threads that have ended: {names}. Restart the server." if names else None


def _json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # what came with the model is another's
        return None
    return found if isinstance(found, dict) else None


def _page(model: Model, file: str, what: str) -> HTMLResponse:
    found = _text(_folder(model) / file)
    if found is None:
        detail = f"This model was not registered with a {what}; `python -m pipeline.evaluate` writes one."
        raise problems.ProblemError(404, f"no-{what}", f"No {what}", detail)
    # The page names its own style's hash in a policy of its own, which holds beside this one.
    csp = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
    return HTMLResponse(found, headers={"Content-Security-Policy": csp})


def _folder(model: Model) -> Path:
    """Where what was registered with the model lies."""
    return model.located.path if model.located.path.is_dir() else model.located.path.parent


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
