"""The images that benchmarks send: rendered smears as JPEG, of a camera's size and of the model's."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import smears

SIZES = {"4000x3000": (4000, 3000), "1024x768": (1024, 768), "224x224": (224, 224)}
RENDERED = (
    1024  # pixels a side at most; what is larger is enlarged, and gets a sensor's noise, which costs a decoder most
)
NOISE = 4  # grey levels, standard deviation


def jpegs(size: str, folder: Path) -> list[Path]:
    """One image of each class, of one of SIZES; always the same. Kept in `folder`: the large ones take seconds each."""
    width, height = SIZES[size]
    (folder / size).mkdir(parents=True, exist_ok=True)
    paths = []
    for index, key in enumerate(smears.CLASSES):
        path = folder / size / f"{key}.jpg"
        if not path.is_file():
            square = smears.render(key, patient=1, session=1 + index % 2, index=1, size=min(width, RENDERED), seed=0)
            if width > RENDERED:
                square = _enlarged(square, width)
            top = (width - height) // 2
            Image.fromarray(square[top : top + height]).save(path, quality=smears.JPEG_QUALITY)
        paths.append(path)
    return paths


def _enlarged(square: np.ndarray, width: int) -> np.ndarray:
    large = np.asarray(Image.fromarray(square).resize((width, width), Image.Resampling.BICUBIC), np.float32)
    large += np.random.default_rng(0).normal(0, NOISE, large.shape).astype(np.float32)
    return large.clip(0, 255).astype(np.uint8)
