"""Images that are no smears, to measure whether the model declines them.

They come with installed packages or are made; none is downloaded and none is a patient's. All are uint8 [n, S, S, 3],
as the server would see them, and equal seeds give equal images.
"""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from leukdetect import apart, images
from pipeline.data import walk
from pipeline.stage import Problem

EACH = 60  # images a kind
OTHER_LABORATORY = "another laboratory"  # smears all the same: whether they are unlike the training images is no demand
FEW = (  # a caveat that the model card prints beside the intervals
    "Photographs are crops of three pictures, textures of three reliefs; blank slides and inverted colours are made of "
    "held-out images. Intervals take such images one by one, and are too narrow."
)
MAPS = ("terrain", "gist_earth", "pink", "copper", "twilight", "gray")
WORDS = (
    "patient", "result", "smear", "white cells", "platelets", "ward", "date", "12.5", "high", "print", "Save", "login",
)  # fmt: skip


def kinds(smears: np.ndarray, seed: int, other_laboratory: str | None = None) -> dict[str, np.ndarray]:
    """Every kind of image that is no smear, by name.

    Args:
        smears: uint8 [N, S, S, 3], held out, to invert, and to take the colour of blank slides from.
        other_laboratory: a folder of smears.
    """
    size, rng = smears.shape[1], np.random.default_rng(seed)
    chosen = smears[np.sort(rng.permutation(len(smears))[:EACH])]
    photographs, reliefs = _photographs(), _reliefs()
    return {
        "photographs": np.stack([_crop(photographs[rng.integers(len(photographs))], size, rng) for _ in range(EACH)]),
        "textures": np.stack([_texture(reliefs[rng.integers(len(reliefs))], size, rng) for _ in range(EACH)]),
        "noise": np.stack([_noise(size, rng) for _ in range(EACH)]),
        "blank slides": np.stack([_blank(image, rng) for image in chosen]),
        "inverted colours": 255 - chosen,
        "screenshots": np.stack([_screenshot(size, rng) for _ in range(EACH)]),
    } | ({OTHER_LABORATORY: folder(Path(other_laboratory), size)} if other_laboratory else {})


def folder(path: Path, size: int) -> np.ndarray:
    """Another laboratory's images, decoded as the server does.

    Raises Problem if the folder has none or is missing, or one cannot be read.
    """
    left_out: Counter[str] = Counter()
    pixels = []
    for file in walk.image_files(path, left_out) if path.is_dir() else ():
        try:
            pixels.append(apart.sized(file.read_bytes(), size))
        except images.ImageError as error:
            raise Problem(f"evaluate.other_laboratory: {file} cannot be used: {error}. Take it away.") from error
    if not pixels:
        but = walk.but(left_out)
        raise Problem(f"evaluate.other_laboratory: no image in {path}{but}; name a folder of smears, or null for none")
    return np.stack(pixels)


def _photographs() -> list[Image.Image]:
    """A temple, a flower (scikit-learn, CC BY) and a portrait (matplotlib, public domain)."""
    from sklearn.datasets import load_sample_images

    portrait = Image.open(_shipped("grace_hopper.jpg")).convert("RGB")
    return [*map(Image.fromarray, load_sample_images().images), portrait]


def _shipped(name: str) -> Path:
    """A file of matplotlib's sample data."""
    import matplotlib

    return Path(matplotlib.get_data_path(), "sample_data", name)


def _reliefs() -> list[Image.Image]:
    """A slice of a head (MRI), and heights of sea and land, all matplotlib's: grey, 8 bits."""
    with gzip.open(_shipped("s1045.ima.gz")) as file:
        head = np.frombuffer(file.read(), np.uint16).reshape(256, 256)
    with np.load(_shipped("topobathy.npz")) as sea, np.load(_shipped("jacksboro_fault_dem.npz")) as land:
        return [_grey(plane.astype(np.float64)) for plane in (head, sea["topo"], land["elevation"])]


def _grey(plane: np.ndarray) -> Image.Image:
    low, high = np.quantile(plane, (0.01, 0.99))
    return Image.fromarray(np.rint(255 * np.clip((plane - low) / (high - low), 0, 1)).astype(np.uint8))


def _texture(relief: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A crop of a relief in the colours of a map."""
    from matplotlib import colormaps

    colours = colormaps[MAPS[rng.integers(len(MAPS))]](np.arange(256))[:, :3]
    return np.rint(255 * colours[_crop(relief, size, rng)[..., 0]]).astype(np.uint8)


def _crop(picture: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of a quarter to all of the picture's shorter side, anywhere in it."""
    side = int(min(picture.size) * rng.uniform(0.25, 1))
    left, top = (int(rng.integers(whole - side + 1)) for whole in picture.size)
    return images.resize(picture.crop((left, top, left + side, top + side)).convert("RGB"), size)


def _noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Grains of 1 to 16 pixels, of any mean colour and strength."""
    grain = int(2 ** rng.integers(5))
    coarse = rng.normal(rng.uniform(40, 215, 3), rng.uniform(20, 80), (-(-size // grain), -(-size // grain), 3))
    return images.resize(Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)), size)


def _blank(smear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The slide beside the cells: this smear's brightest colour, a vignette and the camera's noise."""
    size = len(smear)
    glass = np.quantile(smear.reshape(-1, 3), 0.95, axis=0)
    y, x = np.linspace(-1, 1, size)[:, None, None], np.linspace(-1, 1, size)[None, :, None]
    light = glass * (1 - rng.uniform(0, 0.12) * (x**2 + y**2))
    return np.clip(light + rng.normal(0, rng.uniform(0.5, 3), (size, size, 3)), 0, 255).astype(np.uint8)


def _screenshot(size: int, rng: np.random.Generator) -> np.ndarray:
    """Lines of words in Pillow's own font, dark on light or light on dark, with a coloured bar on top."""
    paper, ink = sorted(rng.integers(0, 256, 2), key=lambda value: abs(int(value) - 127))[::-1]
    ink = ink if abs(int(paper) - int(ink)) > 90 else (255 if paper < 128 else 0)
    side = int(rng.integers(160, 500))
    page = Image.new("RGB", (side, side), (int(paper),) * 3)
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, side, 18), fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    height = int(rng.integers(10, 22))
    font = ImageFont.load_default(height)
    for top in range(24, side, int(height * 1.4)):
        words = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=int(rng.integers(2, 12))))
        draw.text((6, top), words, fill=(int(ink),) * 3, font=font)
    return images.resize(page, size)
