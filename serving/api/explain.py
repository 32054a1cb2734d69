"""POST /explain: where in the image the model looked for a class, and the training images most like it to the model."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field
from python_multipart.multipart import parse_options_header

from leukdetect import explanation
from leukdetect.similar import CASES
from serving import problems
from serving.api import predict
from serving.inference.examine import examine
from serving.inference.prediction import Prediction, prediction
from serving.request import auth
from serving.request.deadline import DEADLINE_PARAMETER
from serving.service import champion, of

EXPLANATION = 30_000_000  # bytes that drawing the overlay and packing the answer take

# One at a time: pictures are not to take the processors from predictions.
_drawing = ThreadPoolExecutor(1, thread_name_prefix="draw")

_PNG: dict[int | str, dict[str, object]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}

router = APIRouter(tags=["predictions"], dependencies=[Depends(auth.Required("predict"))])


class Explanation(BaseModel):
    """Where the model looked for one class, and which training images are most like this one to it."""

    prediction: Prediction = Field(description="as /predict answers; not kept for /feedback")
    class_: str = Field(serialization_alias="class", description="the key of the class that the map is for")
    label: str = Field(description="the same for people")
    cam: list[list[float]] = Field(
        description="rows from the top, values from the left; 0 to 1 at its own highest, or all 0 where nothing "
        "spoke for the class. It covers the whole upright image"
    )
    attention: list[list[float]] | None = Field(
        description="the weight of each position in what the model made of the image, in the order of `cam`; they sum "
        "to 1, and speak for no class. Null: the model averages the positions"
    )
    overlay: str = Field(description=f"data:image/png;base64,… of at most {explanation.MAX_SIDE} pixels a side")
    note: str = Field(description="to be shown with the map")
    similar: list[explanation.SimilarCase] = Field(
        description=f"the {CASES} training images of the model's index whose embeddings are nearest, nearest "
        "first; what it finds alike need not be the same diagnosis. Empty: the file is from before there was an index"
    )


@router.post(
    "/explain",
    response_model=Explanation,
    responses=_PNG | problems.documented(400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=predict.ONE_IMAGE | {"parameters": [DEADLINE_PARAMETER]},
)
async def explain(
    request: Request,
    key: Annotated[str | None, Query(alias="class", description="without it, the highest class")] = None,
) -> Response:
    """Shows where the model looked (what each position gives to a class), and the training images most like this one.

    With `Accept: image/png`, the overlay alone, the note inside it.

    Same upload as /predict. Explanations wait for predictions, and their answers are not counted among them.
    """
    service = of(request)
    engine = service.engine
    async with predict.one_image(request) as sent:
        model = champion(request)
        contract = model.contract
        try:
            wanted = None if key is None else contract.index_of(key)
        except KeyError as error:
            known = ", ".join(each.key for each in contract.classes)
            detail = f"The model's classes are {known}. Name one of them, or none for the highest."
            raise problems.ProblemError(422, "unknown-class", "No such class", detail) from error
        # The place is kept until the picture is drawn, so that pictures cannot pile up either.
        with engine.admitted(sent.deadline, "explain"), service.budget.taken(EXPLANATION):
            image, scores, decode_seconds = await examine(
                service.pool, engine, model, sent.data, sent.deadline, lane="explain", outputs=model.explaining
            )
            answered = prediction(request.state.request_id, model, image, scores, sent.read_seconds, decode_seconds)
            picture = await service.pool.picture(sent.data, explanation.MAX_SIDE, sent.deadline)
            made = await asyncio.get_running_loop().run_in_executor(
                _drawing, explanation.explain, contract, model.index, answered, scores.outputs, picture, wanted
            )
    if _prefers_png(request.headers.get("accept", "")):
        return Response(made.overlay, media_type="image/png")
    answer = Explanation(
        prediction=answered,
        class_=made.key,
        label=made.label,
        cam=_rows(made.cam),
        attention=None if made.attention is None else _rows(made.attention),
        overlay=f"data:image/png;base64,{base64.b64encode(made.overlay).decode()}",
        note=made.note,
        similar=made.similar,
    )
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")


def _rows(grid: np.ndarray) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in grid.tolist()]


def _prefers_png(accept: str) -> bool:
    """Whether an Accept header prefers PNG to JSON: the q of the range that names each best (RFC 9110, 12.5.1)."""
    ranges: dict[str, float] = {}
    for each in accept.split(","):
        kind, options = parse_options_header(each.strip())
        try:
            ranges[kind.decode()] = float(options.get(b"q", 1))
        except ValueError:  # not a number: as if it were not there
            continue
    png, json = (
        next((ranges[name] for name in names if name in ranges), 0.0)
        for names in (("image/png", "image/*", "*/*"), ("application/json", "application/*", "*/*"))
    )
    return png > json
