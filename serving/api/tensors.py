"""Requests and answers of the Open Inference Protocol: tensors from and to JSON, with or without binary parts.

What makes no sense is a 400 that says why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError
from pydantic_core import from_json

from leukdetect.contract import ANSWER, OUTPUTS
from leukdetect.model_file import Model
from serving.inference.engine import Scores
from serving.problems import ProblemError

INPUT = "image"
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON, where binary tensors follow it
# About three images of 224 pixels. Reading so much holds the interpreter, and /livez, for a tenth of a second; binary
# tensors take none, and a quarter of the bytes.
MAX_JSON_BYTES = 2_000_000


class OutputTensor(BaseModel):
    """One output. Of a binary one, the bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = Field(default=None, description="row by row")


class InferAnswer(BaseModel):
    """The model's outputs."""

    model_name: str
    model_version: str | None = None
    id: str | None = Field(default=None, description="the request's")
    outputs: list[OutputTensor]


class _Parameters(BaseModel):
    """Of a request, its input or an output; unknown ones are ignored."""

    binary_data_size: Annotated[int, Field(strict=True, ge=0)] | None = None
    binary_data: StrictBool | None = None
    binary_data_output: StrictBool = False
    classification: StrictInt = 0


class _Input(BaseModel):
    name: str
    datatype: str
    shape: list[StrictInt]
    parameters: _Parameters = _Parameters()
    data: list[Any] | None = None


class _Output(BaseModel):
    name: str
    parameters: _Parameters = _Parameters()


class _Request(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    id: str | None = None
    parameters: _Parameters = _Parameters()
    inputs: list[_Input]
    outputs: list[_Output] = []


@dataclass(frozen=True)
class Asked:
    """A request that can be answered."""

    id: str | None
    pixels: np.ndarray  # uint8 [N, S, S, 3]
    outputs: dict[str, bool]  # name: as binary


def json_bytes(request: Request, content: bytes) -> int:
    """How much of the body is JSON."""
    told = request.headers.get(HEADER_LENGTH)
    if told is None:
        return len(content)
    if not (told.isascii() and told.isdigit() and len(told) < 10 and int(told) <= len(content)):
        raise bad(f"{HEADER_LENGTH} is the number of bytes of JSON in the body, which has {len(content)} in all.")
    return int(told)


def read(content: bytes, json_bytes: int, size: int, max_images: int) -> Asked:
    """Reads a request's body; the first `json_bytes` are JSON.

    Raises ProblemError: 413 for too much JSON or too many images; 400 for whatever else cannot be answered.
    """
    if json_bytes > MAX_JSON_BYTES:
        detail = f"JSON may have {MAX_JSON_BYTES / 1e6:g} MB. Send the tensor as binary data, which is a quarter of it."
        raise ProblemError(413, "body-too-large", "Too much JSON", detail)
    try:
        asked = _Request.model_validate(from_json(content[:json_bytes]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "The request"
        what = "Input should be an object" if first["type"] == "model_type" else first["msg"]
        raise bad(f"{where}: {what}.") from error
    except ValueError as error:
        raise bad("The request is no JSON.") from error

    if [each.name for each in asked.inputs] != [INPUT]:
        raise bad(f"Send one input, named '{INPUT}'.")
    [tensor] = asked.inputs
    if tensor.datatype != "UINT8":
        raise bad(f"The input '{INPUT}' is UINT8: RGB, 0 to 255.")
    if len(tensor.shape) != 4 or tensor.shape[1:] != [size, size, 3] or tensor.shape[0] < 1:
        raise bad(
            f"The input '{INPUT}' has the shape [N, {size}, {size}, 3] and at least one image, not {tensor.shape}."
        )
    if tensor.shape[0] > max_images:
        raise ProblemError(413, "batch-size", "Not that many images", f"Send at most {max_images} images in a request.")

    binary, told = memoryview(content)[json_bytes:], tensor.parameters.binary_data_size
    if (told is None) == (tensor.data is None):
        raise bad("Send the tensor either as data in the JSON, or as binary data with binary_data_size.")
    if len(binary) != (told or 0):
        raise bad(f"The body has {len(binary)} bytes after its JSON, and binary_data_size is {told or 0}.")
    pixels = np.frombuffer(binary, np.uint8) if tensor.data is None else read_numbers(tensor.data, tensor.shape)
    if pixels.size != math.prod(tensor.shape):
        raise bad(f"The shape {tensor.shape} takes {math.prod(tensor.shape)} bytes, not {pixels.size}.")
    return Asked(asked.id, pixels.reshape(tensor.shape), _wanted(asked))


def _wanted(asked: _Request) -> dict[str, bool]:
    """The outputs to answer with, in the order asked for, and whether as binary."""
    if not asked.outputs:
        return dict.fromkeys(ANSWER, asked.parameters.binary_data_output)
    wanted: dict[str, bool] = {}
    for each in asked.outputs:
        if each.name not in OUTPUTS or each.name in wanted:
            raise bad(f"Ask for each of the outputs {', '.join(OUTPUTS)} once at most.")
        if each.parameters.classification:
            raise bad("The classification extension is not served: ask for probabilities.")
        binary = each.parameters.binary_data
        wanted[each.name] = asked.parameters.binary_data_output if binary is None else binary
    return wanted


def read_numbers(data: list[Any], shape: Sequence[int]) -> np.ndarray:
    """A JSON array of `shape`, flat or nested, to uint8 [M].

    Raises ProblemError: 400 where it is not that, or holds something else than whole numbers from 0 to 255.
    """
    count = math.prod(shape)
    numbers = np.array(data, dtype=object)  # as JSON has them: NumPy would make numbers of true and of 1.0
    fits = numbers.shape in ((count,), tuple(shape)) and set(map(type, numbers.flat)) == {int}
    if not fits or numbers.min() < 0 or numbers.max() > 255:
        raise bad(f"data must be {count} whole numbers, 0 to 255: flat, or nested as the shape {list(shape)} says.")
    return numbers.astype(np.uint8).ravel()


def pack(model: Model, asked: Asked, scores: list[Scores]) -> Response:
    """The response: JSON, and after it the binary outputs in the order in which the JSON names them."""
    outputs: list[OutputTensor] = []
    binary: list[bytes] = []
    for name, is_binary in asked.outputs.items():
        values = np.stack([each.outputs[name] for each in scores]).astype("<f4")
        tensor = OutputTensor(name=name, datatype="FP32", shape=list(values.shape))
        if is_binary:
            binary.append(values.tobytes())
            tensor.parameters = {"binary_data_size": len(binary[-1])}
        else:
            tensor.data = values.ravel().tolist()
        outputs.append(tensor)
    name, version = model.contract.name, model.located.version
    answer = InferAnswer(model_name=name, model_version=version, id=asked.id, outputs=outputs)
    head = answer.model_dump_json(exclude_none=True).encode()
    if not binary:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(b"".join([head, *binary]), headers=headers, media_type="application/octet-stream")


def bad(detail: str) -> ProblemError:
    return ProblemError(400, "bad-inference-request", "The request cannot be inferred", detail)
