"""Renders the synthetic demo: single stained white cells among red cells, in four classes.

A demonstration of the pipeline, not haematology. Morphology alone carries the class (`MORPHOLOGY`). Stain, light and
camera are drawn per virtual patient and session whatever the class, and the camera's automatic exposure, white balance
and contrast take what is left of the class out of an image's overall colour.

The same arguments give the same bytes on every machine. So floats see only + - * / and sqrt, element by element, which
IEEE 754 rounds in one way; sums over pixels are of integers; an angle is a unit vector, and its harmonics come from the
addition formulas; noise is made of uniform numbers. NumPy's exp, sin, power, dot, complex product and float sums are
not used: their last bits depend on the processor's vector unit.

Lengths are in half frames, amounts of stain in optical density, pixel arrays float32 [side, side] unless it is said.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.stage import Problem, progress


@dataclass(frozen=True)
class Morphology:
    """What the white cell looks like."""

    radius: float
    radius_spread: float  # standard deviation, as a share
    nucleus: float  # nuclear radius ÷ cell radius; its square is about the nucleus-to-cytoplasm ratio
    indentation: float  # depth of the notch, in nuclear radii
    chromatin_contrast: float  # of clumps against the nucleus's own mean, as a share
    chromatin_grain: float  # clumps per nuclear radius
    nucleoli: float  # expected number
    nucleolus_contrast: float  # share of the chromatin that is missing there
    vacuoles: float  # expected number


# In order of maturation, backwards. A cell's stage is a place on this line, so neighbouring classes overlap.
MORPHOLOGY = {
    "benign": Morphology(0.54, 0.04, 0.94, 0.00, 0.06, 2.0, 0.0, 0.00, 0.0),
    "early": Morphology(0.60, 0.04, 0.90, 0.03, 0.38, 2.6, 0.4, 0.20, 0.0),
    "pre": Morphology(0.68, 0.09, 0.77, 0.42, 0.24, 4.2, 0.7, 0.40, 0.0),
    "pro": Morphology(0.77, 0.05, 0.91, 0.04, 0.16, 6.5, 1.7, 0.60, 0.4),
}
MATURE_LYMPHOCYTE = Morphology(0.50, 0.04, 0.86, 0.05, 0.22, 1.8, 0.0, 0.00, 0.0)
MATURE_SHARE = 0.25  # of the benign cells
CLASSES = tuple(MORPHOLOGY)

# Standard deviations of the stage, where neighbouring classes are 1 apart; these keep a perfect reader below 100 %.
STAGE_SPREAD_PATIENT = 0.10
STAGE_SPREAD_CELL = 0.20

SESSIONS = (1, 2)
GOLDEN_PATIENT = 0  # the demo's patients count from 1
JPEG_QUALITY = 90
SUPERSAMPLING = 2
_NAME = re.compile(r"([a-z]+)-p(\d+)-s(\d+)-(\d+)\.jpg$")

# Optical density of a unit of stain in R, G, B. Chromatin holds both: the Romanowsky effect makes it purple.
AZURE = (0.78, 0.60, 0.24)
EOSIN = (0.14, 0.72, 0.58)

# Grey levels in R, G, B that the camera aims for, whatever is in the frame.
MEAN = (188, 168, 196)
SPREAD = (42, 51, 33)


def write_demo(folder: Path, *, patients: int, images_per_patient: int, size: int, seed: int) -> None:
    """Writes `folder/<class>/<class>-p003-s1-0042.jpg`: `patients` a class, half of each one's images a session.

    Patients and sessions count from 1, images from 1 within their session. No image depends on how many there are.

    Raises:
        Problem: `images_per_patient` is odd.
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
    stains, _, sitting, cell = _stain(class_key, patient, session, index, size, seed)
    return _photograph(stains, sitting, cell)


def cell_masks(names: Sequence[str], size: int, seed: int) -> np.ndarray:
    """Where the white cell is in images of `write_demo`, rendered anew: bool [n, size, size].

    Args:
        names: file names as it writes them, with or without folders.
        size: of the masks; shapes do not depend on it, so it need not be the images' own.
        seed: of the images.

    Raises:
        Problem: a name that it does not write.
    """
    masks = []
    for name in progress(names, "cell masks"):
        found = _NAME.search(name)
        if not found:
            raise Problem(f"{name} is no file name of the rendered demo, so where its cell is cannot be told")
        _, body, _, _ = _stain(found[1], int(found[2]), int(found[3]), int(found[4]), size, seed)
        masks.append(_shrink(body) >= 0.5)
    return np.stack(masks)


def _stain(
    class_key: str, patient: int, session: int, index: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, "_Draws", "_Draws"]:
    """The slide before it is photographed.

    Returns:
        Azure and eosin [2, side, side]; how much of each pixel is the white cell's [side, side]; and the session's and
        the cell's random numbers.
    """
    label = CLASSES.index(class_key)
    person = _Draws(seed, label, patient)
    sitting = _Draws(seed, label, patient, session)
    cell = _Draws(seed, label, patient, session, index)

    look = _between_classes(label + STAGE_SPREAD_PATIENT * person.bell() + STAGE_SPREAD_CELL * cell.bell())
    if class_key == "benign" and cell.chance(MATURE_SHARE):
        look = MATURE_LYMPHOCYTE
    magnification = person.between(0.96, 1.04)

    stains = _surroundings(size * SUPERSAMPLING, magnification, sitting, cell)
    body = _lay_white_cell(stains, look, magnification, cell)
    return stains, body, sitting, cell


class _Draws:
    """Random numbers that depend on nothing but the integers given, and are exact on every machine."""

    def __init__(self, seed: int, *key: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._generator.random()

    def bell(self) -> float:
        """Nearly Gaussian: the sum of four uniform numbers, scaled to a standard deviation of 1."""
        return sqrt(3) * (sum(self._generator.random() for _ in range(4)) - 2)

    def chance(self, share: float) -> bool:
        return self._generator.random() < share

    def count(self, expected: float) -> int:
        """One of the two whole numbers around `expected`, which is their mean."""
        return int(expected) + self.chance(expected - int(expected))

    def direction(self) -> tuple[float, float]:
        """A unit vector, all directions alike: a point of the disc, scaled."""
        while True:
            x, y = self.between(-1, 1), self.between(-1, 1)
            if 0.01 < (square := x * x + y * y) < 1:
                return x / sqrt(square), y / sqrt(square)

    def grid(self, rows: int, columns: int) -> np.ndarray:
        """Uniform in -1..1."""
        return 2 * self._generator.random((rows, columns), dtype=np.float32) - 1


def _between_classes(stage: float) -> Morphology:
    """The classes on either side of `stage`, mixed."""
    stage = min(max(stage, 0.0), len(CLASSES) - 1.0)
    first = min(int(stage), len(CLASSES) - 2)
    a, b = MORPHOLOGY[CLASSES[first]], MORPHOLOGY[CLASSES[first + 1]]
    part = stage - first
    return Morphology(*((1 - part) * getattr(a, f.name) + part * getattr(b, f.name) for f in fields(Morphology)))


def _surroundings(side: int, magnification: float, sitting: _Draws, cell: _Draws) -> np.ndarray:
    """Azure and eosin, [2, side, side], of plasma, red cells, platelets and now and then a smudge."""
    soft = 8 / side
    stains = np.zeros((2, side, side), np.float32)
    azure, eosin = stains
    eosin += sitting.between(0.01, 0.06)

    density = sitting.between(0.45, 0.95)
    spacing = 0.86 * magnification
    for row in range(-2, 3):
        for column in range(-2, 3):
            x = spacing * (column + 0.5 * (row % 2)) + 0.16 * cell.bell()
            y = spacing * row + 0.16 * cell.bell()
            radius = 0.42 * magnification * (1 + 0.06 * cell.bell())
            if not cell.chance(density) or max(abs(x), abs(y)) > 1 + radius:
                continue
            distance, cosine, sine = _polar(side, x, y)
            share = distance / (radius * _outline(cosine, sine, 0.04, cell))
            disc = _smooth((1 - share) * radius / soft + 0.5)
            pallor = cell.between(0.4, 0.7) * _smooth((0.75 - share) / 0.6)
            eosin += cell.between(0.5, 0.7) * disc * (1 - pallor)

    for _ in range(cell.count(0.6)):  # platelets
        distance, cosine, sine = _polar(side, cell.between(-1, 1), cell.between(-1, 1))
        edge = cell.between(0.06, 0.12) * _outline(cosine, sine, 0.2, cell)
        platelet = _smooth((edge - distance) / soft + 0.5) * (1 + 0.4 * _noise(side, 14, cell))
        azure += 0.5 * platelet
        eosin += 0.4 * platelet

    if cell.chance(0.08):  # a smudged cell, at the edge of the frame
        x, y = cell.direction()
        distance, _, _ = _polar(side, 1.1 * x, 1.1 * y)
        smudge = _smooth((0.6 - distance) / 0.5) * (1 + 0.5 * _noise(side, 5, cell))
        azure += 0.35 * smudge
        eosin += 0.30 * smudge
    return stains


def _lay_white_cell(stains: np.ndarray, look: Morphology, magnification: float, cell: _Draws) -> np.ndarray:
    """Puts the white cell in place of what `stains`, [2, side, side], have in the middle.

    Returns:
        How much of each pixel is its own, 0 to 1: [side, side].
    """
    azure, eosin = stains
    side = len(azure)
    soft = 6 / side

    x, y = 0.03 * cell.bell(), 0.03 * cell.bell()
    radius = look.radius * magnification * (1 + look.radius_spread * cell.bell())
    distance, cosine, sine = _polar(side, x, y)
    to_membrane = radius * _outline(cosine, sine, 0.05, cell) - distance
    body = _smooth(to_membrane / soft + 0.5)
    cytoplasm = 1 + 0.15 * _noise(side, 6, cell)
    azure += body * (cell.between(0.34, 0.46) * cytoplasm - azure)
    eosin += body * (0.06 * cytoplasm - eosin)

    nuclear_radius = radius * look.nucleus * (1 + 0.012 * cell.bell())
    aside_x, aside_y = cell.direction()
    aside = (radius - nuclear_radius) * cell.between(0.1, 0.7)
    x, y = x + aside * aside_x, y + aside * aside_y
    distance, cosine, sine = _polar(side, x, y)
    edge = nuclear_radius * _outline(cosine, sine, 0.03, cell)
    notch_x, notch_y = cell.direction()
    opening = cell.between(0.3, 0.6)  # cosine of half the notch's angle
    depth = max(0.0, look.indentation * (1 + 0.25 * cell.bell()))
    edge *= 1 - depth * _smooth((cosine * notch_x + sine * notch_y - opening) / (1 - opening))
    nucleus = _smooth(np.minimum(edge - distance, to_membrane - 0.015) / soft + 0.5)

    contrast = 1.6 * look.chromatin_contrast * (1 + 0.15 * cell.bell())
    grain = look.chromatin_grain / nuclear_radius * (1 + 0.08 * cell.bell())
    chromatin = 1 + contrast * _noise(side, grain, cell)
    nucleoli = np.zeros_like(nucleus)
    for _ in range(cell.count(look.nucleoli)):
        towards_x, towards_y = cell.direction()
        reach = nuclear_radius * cell.between(0.15, 0.55)
        distance, _, _ = _polar(side, x + reach * towards_x, y + reach * towards_y)
        size = nuclear_radius * cell.between(0.15, 0.22)
        nucleoli = np.maximum(nucleoli, _smooth((size - distance) / (0.5 * size) + 0.5))
        chromatin += 0.3 * look.nucleolus_contrast * _smooth(1 - np.abs(distance - 1.4 * size) / (0.4 * size))
    chromatin = np.maximum(chromatin * (1 - look.nucleolus_contrast * nucleoli), 0)
    azure += nucleus * (1.15 * chromatin - azure)
    eosin += nucleus * (0.85 * chromatin * (1 - 0.5 * nucleoli) - eosin)  # pale blue: less eosin still

    for _ in range(cell.count(look.vacuoles)):
        towards_x, towards_y = cell.direction()
        reach = radius * cell.between(0.6, 0.85)
        distance, _, _ = _polar(side, x + reach * towards_x, y + reach * towards_y)
        stains *= 1 - 0.85 * _smooth((radius * cell.between(0.06, 0.10) - distance) / soft + 0.5)
    return body


def _photograph(stains: np.ndarray, sitting: _Draws, cell: _Draws) -> np.ndarray:
    """What the session's lamp, focus and camera make of [2, side, side]: uint8 [size, size, 3], half as many a side."""
    azure, eosin = stains
    side = len(azure)
    size = side // SUPERSAMPLING
    azure_strength = sitting.between(0.8, 1.25)
    eosin_strength = azure_strength * sitting.between(0.75, 1.3)
    lamp_x, lamp_y = sitting.direction()
    distance, _, _ = _polar(side, 0.25 * lamp_x, 0.25 * lamp_y)
    light = 1 - sitting.between(0.02, 0.12) * distance * distance  # vignette
    defocus = sitting.between(0.3, 0.8) * cell.between(0.8, 1.25) * size / 80  # σ in pixels

    exposure = 8 * sitting.bell() + 4 * cell.bell()
    contrast = 1 + 0.10 * sitting.bell() + 0.06 * cell.bell()

    image = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        density = azure_strength * AZURE[channel] * (1 + 0.08 * sitting.bell()) * azure
        density += eosin_strength * EOSIN[channel] * (1 + 0.08 * sitting.bell()) * eosin
        passed = _blur(_shrink(light * _transmitted(density)), defocus)
        mean = MEAN[channel] + exposure + 6 * sitting.bell() + 3 * cell.bell()  # the channel's own part: white balance
        spread = SPREAD[channel] * contrast * (1 + 0.07 * sitting.bell() + 0.04 * cell.bell())
        sensor = 2.5 * (cell.grid(size, size) + cell.grid(size, size) + cell.grid(size, size))
        image[..., channel] = np.clip(np.rint(_expose(passed, mean, spread) + sensor), 0, 255)
    return image


def _transmitted(density: np.ndarray) -> np.ndarray:
    """Beer–Lambert, exp(-density), as (1 - density ÷ 256)^256 by squaring: at most 2 % off up to a density of 3."""
    passed = 1 - np.minimum(density, 6) / 256
    for _ in range(8):
        passed = passed * passed
    return passed


def _expose(passed: np.ndarray, mean: float, spread: float) -> np.ndarray:
    """Automatic exposure and contrast: grey levels with this mean and standard deviation."""
    counts = np.rint(passed * 65535).astype(np.int64)  # integers: their sums are exact in any order
    average = int(counts.sum()) / counts.size
    variance = int((counts * counts).sum()) / counts.size - average * average
    return (counts - average) * (spread / sqrt(max(variance, 1.0))) + mean


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Nearly Gaussian: three-tap kernels one after the other, whose variances add up to sigma², in pixels."""
    passes = int(2 * sigma * sigma) + 1
    tap = sigma * sigma / (2 * passes)
    for _ in range(passes):
        wide = np.pad(image, ((1, 1), (0, 0)), mode="edge")
        image = (1 - 2 * tap) * image + tap * (wide[:-2] + wide[2:])
        wide = np.pad(image, ((0, 0), (1, 1)), mode="edge")
        image = (1 - 2 * tap) * image + tap * (wide[:, :-2] + wide[:, 2:])
    return image


def _shrink(image: np.ndarray) -> np.ndarray:
    """Mean of each 2 × 2 pixels (SUPERSAMPLING), added up in one order."""
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def _axis(side: int) -> np.ndarray:
    """Where the pixels are, from -1 to 1: float32 [side]."""
    return (2 * np.arange(side, dtype=np.float32) + 1) / side - 1


def _polar(side: int, x: float, y: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pixel's distance from (x, y), and the cosine and sine of its angle."""
    dx, dy = (_axis(side) - x)[None, :], (_axis(side) - y)[:, None]
    distance = np.sqrt(dx * dx + dy * dy) + 1e-6
    return distance, dx / distance, dy / distance


def _outline(cosine: np.ndarray, sine: np.ndarray, wobble: float, draws: _Draws) -> np.ndarray:
    """How far a cell's edge is in each direction, about 1: low harmonics of the angle."""
    edge = np.ones_like(cosine)
    c, s = cosine, sine
    for harmonic in range(2, 6):
        c, s = c * cosine - s * sine, s * cosine + c * sine
        edge += wobble / harmonic * (draws.bell() * c + draws.bell() * s)
    return edge


def _noise(side: int, grain: float, draws: _Draws) -> np.ndarray:
    """Value noise, mostly in -1..1: two octaves of random lattices, the first with `grain` points a half frame.

    Each lattice lies at an angle of its own, so that its rows do not show.
    """
    total = np.zeros((side, side), np.float32)
    for octave_grain, amplitude in ((grain, 1.0), (2 * grain, 0.5)):
        cosine, sine = draws.direction()
        x, y = octave_grain * _axis(side)[None, :], octave_grain * _axis(side)[:, None]
        middle = int(1.5 * octave_grain) + 1  # beyond the frame's diagonal, so that indices are not negative
        u, v = cosine * x - sine * y + middle, sine * x + cosine * y + middle
        column, row = u.astype(np.int64), v.astype(np.int64)
        right, down = _smooth(u - column), _smooth(v - row)
        lattice = draws.grid(2 * middle + 2, 2 * middle + 2)
        top = lattice[row, column] * (1 - right) + lattice[row, column + 1] * right
        bottom = lattice[row + 1, column] * (1 - right) + lattice[row + 1, column + 1] * right
        total += amplitude * (top * (1 - down) + bottom * down)
    return total


def _smooth(x: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 up to 0, 1 from 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
