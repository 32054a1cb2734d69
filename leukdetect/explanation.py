"""Where in the image the model looked for a class, and the training images most like it to the model."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, Field

from leukdetect.answer import Answer
from leukdetect.contract import ANSWER, ATTENTION, Contract
from leukdetect.similar import Index

OUTPUTS = (*ANSWER, "embedding", "cam")  # what an explanation needs of the graph
MAX_SIDE = 1024  # pixels of the overlay; a larger one takes long to pack and shows no more, the map being coarse
OPACITY = 0.65  # where the map is highest, so that the cell under it can still be read

# Viridis at 0, 1/8, … 1 (matplotlib's, CC0): its lightness rises evenly, so that it reads the same to colour-blind
# eyes. The server's page draws with the same colours (serving/static/map.js).
_ANCHORS = np.array(
    [
        (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140),
        (40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37),
    ]
)  # fmt: skip
_STEPS = np.linspace(0, len(_ANCHORS) - 1, 256)
_PALETTE = np.stack([np.interp(_STEPS, range(len(_ANCHORS)), channel) for channel in _ANCHORS.T], axis=1)


class SimilarCase(BaseModel):
    """A training image that is near the image to the model."""

    id: str = Field(description="the first 12 hex digits of its file's SHA-256", examples=["2ea0a09e4c6d"])
    key: str = Field(serialization_alias="class", description="the key of the class it has in the data")
    label: str = Field(description="the same for people")
    distance: float = Field(description="between embeddings of length 1: 0 is the same, 2 the opposite")
    thumbnail: str | None = Field(
        description="data:image/webp;base64,… where the data's licence lets small copies travel, else null",
        examples=["data:image/webp;base64,UklGR…", None],
    )


@dataclass(frozen=True, eq=False)
class Explanation:
    """A class's map over the image, and similar cases."""

    answer: Answer
    key: str  # of the class that the map is for
    label: str
    cam: np.ndarray  # float32 [h, w], rows from the top, 0..1 at its own highest; all 0: nothing spoke for the class
    attention: np.ndarray | None  # float32 [h, w], sums to 1: the positions' weights; None: the model averages them
    overlay: bytes  # a PNG of at most MAX_SIDE pixels a side
    note: str  # to be shown with the map
    similar: list[SimilarCase]  # nearest first; empty: the file is from before there was an index


def scaled(cam: np.ndarray) -> np.ndarray:
    """A class's map, float32 [h, w], to 0..1 at its own highest; what speaks against the class is 0."""
    positive = np.maximum(cam, 0)
    highest = positive.max()
    return positive / highest if highest > 0 else positive


def overlay(picture: Image.Image, cam: np.ndarray, note: str) -> bytes:
    """The map over the image, the higher the more opaque, as a PNG that carries the note.

    On the file's own pixels, not on the small square that the model saw, which a person could hardly read. The model
    saw all of the image, squashed, so the map stretched over all of it lies where it belongs.

    Args:
        picture: upright RGB; it is made smaller in place.
        cam: float32 [h, w], 0..1.
        note: what a reader must know.
    """
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    # Pillow's bilinear takes a value as the middle of its cell, and holds the outermost ones up to the border.
    values = np.asarray(Image.fromarray(cam).resize(picture.size, Image.Resampling.BILINEAR))
    colours = Image.fromarray(np.rint(255 * values).astype(np.uint8))
    colours.putpalette(np.rint(_PALETTE).astype(np.uint8).tobytes())
    opacity = Image.fromarray(np.rint(255 * OPACITY * values).astype(np.uint8))
    info = PngInfo()
    info.add_itxt("Description", note)
    buffer = io.BytesIO()
    Image.composite(colours.convert("RGB"), picture, opacity).save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()


def explain(
    contract: Contract,
    index: Index | None,
    answer: Answer,
    outputs: Mapping[str, np.ndarray],
    picture: Image.Image,
    wanted: int | None,
) -> Explanation:
    """Puts together what is shown of class `wanted`, the highest unless said.

    Args:
        index: of similar cases.
        outputs: the model's for one image, `OUTPUTS` and `attention` where it has that.
        picture: upright RGB; it is made smaller in place.
    """
    number = int(outputs["probabilities"].argmax()) if wanted is None else wanted
    of_class, cam = contract.classes[number], scaled(outputs["cam"][number])
    what = (
        f"Where the model looked for {of_class.label}."
        if cam.any()
        else f"The map is empty: no part of this image spoke more for {of_class.label} than against it."
    )
    note = f"{what} It is a view into the model, not evidence about the cell, and it can be wrong."
    if contract.provenance.synthetic:
        note += " Trained on rendered images: no clinical meaning."
    return Explanation(
        answer=answer,
        key=of_class.key,
        label=of_class.label,
        cam=cam,
        attention=outputs.get(ATTENTION),
        overlay=overlay(picture, cam, note),
        note=note,
        similar=_similar_cases(contract, index, outputs["embedding"]),
    )


def _similar_cases(contract: Contract, index: Index | None, embedding: np.ndarray) -> list[SimilarCase]:
    if index is None:
        return []
    cases = []
    for row, distance in index.nearest(embedding):
        of_class = contract.classes[index.classes[row]]
        picture = base64.b64encode(index.thumbnails[row]).decode() if index.thumbnails else None
        cases.append(
            SimilarCase(
                id=index.ids[row],
                key=of_class.key,
                label=of_class.label,
                distance=round(distance, 4),
                thumbnail=picture and f"data:image/webp;base64,{picture}",
            )
        )
    return cases
