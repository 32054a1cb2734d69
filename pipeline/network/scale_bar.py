"""Scale bars drawn at random: beside them, those that a session's images have in common tell the model nothing."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

UNITS = ("px", "pixels", "µm", "um", "nm")
SMALLEST, LARGEST = (0.09, 0.04), (0.25, 0.16)  # the bar's width and height, as shares of the image's side
MARGIN = 0.05  # the furthest that it lies from the image's edges, likewise
OFTEN = 0.8  # of its box, its line and its text, each of which may be missing


def drawn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of a uint8 RGB image [S, S, 3] with a scale bar at its bottom right, where microscopes put theirs."""
    size = image.shape[0]
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    width, height = np.ceil(size * rng.uniform(SMALLEST, LARGEST)).astype(int).tolist()
    right, bottom = (size - 1 - size * rng.uniform(0, MARGIN, 2)).astype(int).tolist()
    left, top = right - width, bottom - height

    if rng.random() < OFTEN:
        draw.rectangle((left, top, right, bottom), fill=_colour(rng, light=0.7))
    ink = _colour(rng, dark=0.5)
    if rng.random() < OFTEN:
        y, thick = int(rng.integers(top, bottom)), int(rng.integers(1, 2 + size // 75))
        start, end = sorted(rng.integers(left, right + 1, 2).tolist())
        draw.rectangle((start, y, end, y + thick - 1), fill=ink)
        if rng.random() < 0.5:  # with marks at its ends
            for x in (start, end):
                draw.line((x, y - 2, x, y + thick + 1), fill=ink)
    if rng.random() < OFTEN:
        text = _written(f"{rng.integers(1, 500)} {rng.choice(UNITS)}", tall=max(4, int(height * rng.uniform(0.3, 0.9))))
        x, y = int(rng.integers(left, right)), int(rng.integers(top, bottom))
        canvas.paste(ink, (min(x, right - text.width // 2), min(y, bottom - text.height // 2)), text)
    return np.asarray(canvas)


def _colour(rng: np.random.Generator, light: float = 0, dark: float = 0) -> tuple[int, int, int]:
    """White or nearly, black or nearly with these probabilities, else any."""
    kind = rng.random()
    low, high = (200, 256) if kind < light else (0, 60) if kind < light + dark else (0, 256)
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def _written(text: str, tall: int) -> Image.Image:
    """A mask of that height; of Pillow's bitmap font, since what it makes of others varies with the machine."""
    font = ImageFont.load_default_imagefont()
    _, _, width, height = (round(edge) for edge in font.getbbox(text))
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return mask.resize((max(1, width * tall // height), tall), Image.Resampling.BILINEAR)
