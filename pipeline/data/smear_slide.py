"""Draws the slide: a white cell among red cells, as amounts of stain. `smears` says which arithmetic is allowed."""

from math import sqrt
from typing import NamedTuple

import numpy as np


class Morphology(NamedTuple):
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


# From the most mature class to the least. A cell's stage is a place on this line, so neighbouring classes overlap.
MORPHOLOGY = {
    "benign": Morphology(0.54, 0.04, 0.94, 0.00, 0.06, 2.0, 0.0, 0.00, 0.0),
    "early": Morphology(0.60, 0.04, 0.90, 0.03, 0.38, 2.6, 0.4, 0.20, 0.0),
    "pre": Morphology(0.68, 0.09, 0.77, 0.42, 0.24, 4.2, 0.7, 0.40, 0.0),
    "pro": Morphology(0.77, 0.05, 0.91, 0.04, 0.16, 6.5, 1.7, 0.60, 0.4),
}
MATURE_LYMPHOCYTE = Morphology(0.50, 0.04, 0.86, 0.05, 0.22, 1.8, 0.0, 0.00, 0.0)
MATURE_SHARE = 0.25  # of the benign cells
CLASSES = tuple(MORPHOLOGY)

# Standard deviations of the stage, where neighbouring classes are 1 apart. So large that nobody can tell all apart.
STAGE_SPREAD_PATIENT = 0.10
STAGE_SPREAD_CELL = 0.20


class Draws:
    """Random numbers that depend only on the given integers, and are the same to the last bit on every machine."""

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
        """`expected`, rounded up or down by chance so that it is the mean."""
        return int(expected) + self.chance(expected - int(expected))

    def direction(self) -> tuple[float, float]:
        """A unit vector, uniform over all directions: a random point of the disc, scaled."""
        while True:
            x, y = self.between(-1, 1), self.between(-1, 1)
            if 0.01 < (square := x * x + y * y) < 1:
                return x / sqrt(square), y / sqrt(square)

    def grid(self, rows: int, columns: int) -> np.ndarray:
        """Uniform in -1..1."""
        return 2 * self._generator.random((rows, columns), dtype=np.float32) - 1


def morphology(class_key: str, patient: Draws, cell: Draws) -> Morphology:
    """A cell's morphology, interpolated between the two classes next to its stage."""
    stage = CLASSES.index(class_key) + STAGE_SPREAD_PATIENT * patient.bell() + STAGE_SPREAD_CELL * cell.bell()
    if class_key == "benign" and cell.chance(MATURE_SHARE):
        return MATURE_LYMPHOCYTE
    stage = min(max(stage, 0.0), len(CLASSES) - 1.0)
    first = min(int(stage), len(CLASSES) - 2)
    a, b = MORPHOLOGY[CLASSES[first]], MORPHOLOGY[CLASSES[first + 1]]
    part = stage - first
    return Morphology(*((1 - part) * x + part * y for x, y in zip(a, b, strict=True)))


def surroundings(side: int, magnification: float, sitting: Draws, cell: Draws) -> np.ndarray:
    """Azure and eosin, [2, side, side], of plasma, red cells, platelets and a rare smudged cell."""
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
            distance, cosine, sine = polar(side, x, y)
            share = distance / (radius * outline(cosine, sine, 0.04, cell))
            disc = smooth((1 - share) * radius / soft + 0.5)
            pallor = cell.between(0.4, 0.7) * smooth((0.75 - share) / 0.6)
            eosin += cell.between(0.5, 0.7) * disc * (1 - pallor)

    for _ in range(cell.count(0.6)):  # platelets
        distance, cosine, sine = polar(side, cell.between(-1, 1), cell.between(-1, 1))
        edge = cell.between(0.06, 0.12) * outline(cosine, sine, 0.2, cell)
        platelet = smooth((edge - distance) / soft + 0.5) * (1 + 0.4 * noise(side, 14, cell))
        azure += 0.5 * platelet
        eosin += 0.4 * platelet

    if cell.chance(0.08):  # a smudged cell, at the edge of the frame
        x, y = cell.direction()
        distance, _, _ = polar(side, 1.1 * x, 1.1 * y)
        smudge = smooth((0.6 - distance) / 0.5) * (1 + 0.5 * noise(side, 5, cell))
        azure += 0.35 * smudge
        eosin += 0.30 * smudge
    return stains


def lay_white_cell(stains: np.ndarray, look: Morphology, magnification: float, cell: Draws) -> np.ndarray:
    """Draws the white cell over the middle of `stains` [2, side, side]; returns its share of each pixel, 0..1."""
    azure, eosin = stains
    side = len(azure)
    soft = 6 / side

    x, y = 0.03 * cell.bell(), 0.03 * cell.bell()
    radius = look.radius * magnification * (1 + look.radius_spread * cell.bell())
    distance, cosine, sine = polar(side, x, y)
    to_membrane = radius * outline(cosine, sine, 0.05, cell) - distance
    body = smooth(to_membrane / soft + 0.5)
    cytoplasm = 1 + 0.15 * noise(side, 6, cell)
    azure += body * (cell.between(0.34, 0.46) * cytoplasm - azure)
    eosin += body * (0.06 * cytoplasm - eosin)

    nuclear_radius = radius * look.nucleus * (1 + 0.012 * cell.bell())
    aside_x, aside_y = cell.direction()
    aside = (radius - nuclear_radius) * cell.between(0.1, 0.7)
    x, y = x + aside * aside_x, y + aside * aside_y
    distance, cosine, sine = polar(side, x, y)
    edge = nuclear_radius * outline(cosine, sine, 0.03, cell)
    notch_x, notch_y = cell.direction()
    opening = cell.between(0.3, 0.6)  # cosine of half the notch's angle
    depth = max(0.0, look.indentation * (1 + 0.25 * cell.bell()))
    edge *= 1 - depth * smooth((cosine * notch_x + sine * notch_y - opening) / (1 - opening))
    nucleus = smooth(np.minimum(edge - distance, to_membrane - 0.015) / soft + 0.5)

    contrast = 1.6 * look.chromatin_contrast * (1 + 0.15 * cell.bell())
    grain = look.chromatin_grain / nuclear_radius * (1 + 0.08 * cell.bell())
    chromatin = 1 + contrast * noise(side, grain, cell)
    nucleoli = np.zeros_like(nucleus)
    for _ in range(cell.count(look.nucleoli)):
        towards_x, towards_y = cell.direction()
        reach = nuclear_radius * cell.between(0.15, 0.55)
        distance, _, _ = polar(side, x + reach * towards_x, y + reach * towards_y)
        size = nuclear_radius * cell.between(0.15, 0.22)
        nucleoli = np.maximum(nucleoli, smooth((size - distance) / (0.5 * size) + 0.5))
        chromatin += 0.3 * look.nucleolus_contrast * smooth(1 - np.abs(distance - 1.4 * size) / (0.4 * size))
    chromatin = np.maximum(chromatin * (1 - look.nucleolus_contrast * nucleoli), 0)
    azure += nucleus * (1.15 * chromatin - azure)
    eosin += nucleus * (0.85 * chromatin * (1 - 0.5 * nucleoli) - eosin)  # pale blue: less eosin still

    for _ in range(cell.count(look.vacuoles)):
        towards_x, towards_y = cell.direction()
        reach = radius * cell.between(0.6, 0.85)
        distance, _, _ = polar(side, x + reach * towards_x, y + reach * towards_y)
        stains *= 1 - 0.85 * smooth((radius * cell.between(0.06, 0.10) - distance) / soft + 0.5)
    return body


def axis(side: int) -> np.ndarray:
    """Coordinates of the pixels' centres, from -1 to 1: float32 [side]."""
    return (2 * np.arange(side, dtype=np.float32) + 1) / side - 1


def polar(side: int, x: float, y: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pixel's distance from (x, y), and the cosine and sine of its angle."""
    dx, dy = (axis(side) - x)[None, :], (axis(side) - y)[:, None]
    distance = np.sqrt(dx * dx + dy * dy) + 1e-6
    return distance, dx / distance, dy / distance


def outline(cosine: np.ndarray, sine: np.ndarray, wobble: float, draws: Draws) -> np.ndarray:
    """A cell's radius in each direction, about 1: low harmonics of the angle."""
    edge = np.ones_like(cosine)
    c, s = cosine, sine
    for harmonic in range(2, 6):
        c, s = c * cosine - s * sine, s * cosine + c * sine
        edge += wobble / harmonic * (draws.bell() * c + draws.bell() * s)
    return edge


def noise(side: int, grain: float, draws: Draws) -> np.ndarray:
    """Value noise, mostly in -1..1: two octaves of random lattices, the first with `grain` points a half frame.

    Each lattice is turned by a random angle, so that its rows do not show.
    """
    total = np.zeros((side, side), np.float32)
    for octave_grain, amplitude in ((grain, 1.0), (2 * grain, 0.5)):
        cosine, sine = draws.direction()
        x, y = octave_grain * axis(side)[None, :], octave_grain * axis(side)[:, None]
        middle = int(1.5 * octave_grain) + 1  # beyond the frame's diagonal, so that indices are not negative
        u, v = cosine * x - sine * y + middle, sine * x + cosine * y + middle
        column, row = u.astype(np.int64), v.astype(np.int64)
        right, down = smooth(u - column), smooth(v - row)
        lattice = draws.grid(2 * middle + 2, 2 * middle + 2)
        top = lattice[row, column] * (1 - right) + lattice[row, column + 1] * right
        bottom = lattice[row + 1, column] * (1 - right) + lattice[row + 1, column + 1] * right
        total += amplitude * (top * (1 - down) + bottom * down)
    return total


def smooth(x: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 up to 0, 1 from 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
