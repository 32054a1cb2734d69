"""The images that benchmarks send: rendered smears as JPEG, of a camera's size and of the model's."""

from pathlib import Path

from PIL import Image

from pipeline.data import smears

SIZES = {"1024x768": (1024, 768), "224x224": (224, 224)}


def jpegs(size: str, folder: Path) -> list[Path]:
    """One image of each class, of one of SIZES; always the same. Kept in `folder`: the large ones take seconds each."""
    width, height = SIZES[size]
    (folder / size).mkdir(parents=True, exist_ok=True)
    paths = []
    for index, key in enumerate(smears.CLASSES):
        path = folder / size / f"{key}.jpg"
        if not path.is_file():
            square = smears.render(key, patient=1, session=1 + index % 2, index=1, size=width, seed=0)
            top = (width - height) // 2
            Image.fromarray(square[top : top + height]).save(path, quality=smears.JPEG_QUALITY)
        paths.append(path)
    return paths
