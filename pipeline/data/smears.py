"""Renders the synthetic demo: single stained white cells among red cells, in four classes.

A demonstration of the pipeline, not haematology. Only morphology depends on the class (`smear_slide.MORPHOLOGY`);
stain, light and camera are drawn per virtual patient and session, whatever the class; the camera's automatic exposure,
white balance and contrast remove the class from an image's overall colour (`smear_camera`).

The same arguments give the same bytes on every machine. So floats see only + - * / and sqrt, element by element, which
IEEE 754 defines to the last bit; sums over pixels are of integers; an angle is a unit vector, and its harmonics come
from the addition formulas; noise is made of uniform numbers. NumPy's exp, sin, power, dot, complex product and float
sums are not used: their last bits depend on the processor's vector unit.

Lengths are in half frames, amounts of stain in optical density, pixel arrays float32 [side, side] unless it is said.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.smear_camera import SUPERSAMPLING, photograph, shrink
from pipeline.data.smear_slide import CLASSES, Draws, Morphology, lay_white_cell, morphology, surroundings
from pipeline.stage import Problem, progress

SESSIONS = (1, 2)
GOLDEN_PATIENT = 0  # the demo's patients count from 1
JPEG_QUALITY = 90
_NAME = re.compile(r"([a-z]+)-p(\d+)-s(\d+)-(\d+)\.jpg$")


def write_demo(folder: Path, *, patients: int, images_per_patient: int, size: int, seed: int) -> None:
    """Writes `folder/<class>/<class>-p003-s1-0042.jpg`: `patients` a class, half of each one's images a session.

    Patients and sessions count from 1, images from 1 within their session. No image depends on how many there are.

    Raises Problem if `images_per_patient` is odd.
    """
    if images_per_patient % len(SESSIONS):
        raise Problem(f"demo.images_per_patient must be even, not {images_per_patient}: a patient has two sessions")
    cells = [
        (key, patient, session, index)
        for key in CLASSES
        for patient in range(1, patients + 1)
        for session in SESSIONS
        for index in range(1, images_per_patient // len(SESSIONS) + 1)
    ]
    for key in CLASSES:
        (folder / key).mkdir(parents=True, exist_ok=True)
    for key, patient, session, index in progress(cells, "rendering"):
        path = folder / key / f"{key}-p{patient:03d}-s{session}-{index:04d}.jpg"
        path.write_bytes(_jpeg(render(key, patient, session, index, size, seed)))


def golden(n: int, size: int, seed: int) -> list[bytes]:
    """Returns `n` JPEG files, classes in turn, each in a stain of its own, of patients that the demo never has."""
    return [_jpeg(render(CLASSES[i % len(CLASSES)], GOLDEN_PATIENT, i, i, size, seed)) for i in range(n)]


def render(class_key: str, patient: int, session: int, index: int, size: int, seed: int) -> np.ndarray:
    """Returns uint8 [size, size, 3]: one white cell, centred, among red cells.

    Images of a patient share its mean stage and magnification; images of a session also stain, light and focus.
    """
    look, magnification, sitting, cell = _draws(class_key, patient, session, index, seed)
    stains = surroundings(size * SUPERSAMPLING, magnification, sitting, cell)
    lay_white_cell(stains, look, magnification, cell)
    return photograph(stains, sitting, cell)


def cell_masks(names: Sequence[str], size: int, seed: int) -> np.ndarray:
    """Where the white cell is in images of `write_demo`, rendered anew: bool [n, size, size].

    Shapes do not depend on the size, so it need not be the images' own. Raises Problem for any other file name.
    """
    masks = []
    for name in progress(names, "cell masks"):
        found = _NAME.search(name)
        if not found:
            raise Problem(f"{name} is no file name of the rendered demo, so where its cell is cannot be told")
        look, magnification, sitting, cell = _draws(found[1], int(found[2]), int(found[3]), int(found[4]), seed)
        surroundings(2, magnification, sitting, cell)  # not for its pixels: it takes the numbers before the cell's
        nothing = np.zeros((2, size * SUPERSAMPLING, size * SUPERSAMPLING), np.float32)
        masks.append(shrink(lay_white_cell(nothing, look, magnification, cell)) >= 0.5)
    return np.stack(masks)


def _draws(class_key: str, patient: int, session: int, index: int, seed: int) -> tuple[Morphology, float, Draws, Draws]:
    """The cell's look and magnification, and the random numbers of its session and its own."""
    label = CLASSES.index(class_key)
    person = Draws(seed, label, patient)
    cell = Draws(seed, label, patient, session, index)
    look = morphology(class_key, person, cell)
    return look, person.between(0.96, 1.04), Draws(seed, label, patient, session), cell


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
