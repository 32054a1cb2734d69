"""The list of images for a haematologist as a page: each with its map and the most similar training images."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from leukdetect import decoding, explanation, page
from pipeline.data.source import RAW
from pipeline.evaluation.answers import Answers

PAGE = Path(__file__).with_name("calls.html.jinja")
SIDE, SMALL = 320, 96  # pixels


def render(table: pd.DataFrame, answers: Answers, labels: dict[str, str], of: int) -> str:
    """The page of the listed rows, whose index is their place in the answers to `of` images. It shows the images."""
    shown = []
    for i, row in table.iterrows():
        image = _picture(row["image"], SIDE)
        cam = explanation.scaled(answers.cam[i, answers.predicted[i]])
        near = [(path, _data(_jpeg(_picture(path, SMALL)), "jpeg")) for path in row["similar"]]
        shown.append((row, _data(_jpeg(image), "jpeg"), _data(explanation.overlay(image, cam, ""), "png"), near))
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)[None]
    scale = _data(explanation.overlay(Image.new("RGB", (SIDE, 14), "white"), ramp, ""), "png")
    return page.render(PAGE, shown=shown, labels=labels, scale=scale, of=of)


def _picture(path: str, side: int) -> Image.Image:
    image = decoding.picture(RAW / path)
    image.thumbnail((side, side))
    return image


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _data(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
