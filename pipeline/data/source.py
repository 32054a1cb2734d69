"""What `pipeline.fetch` writes: the images as they came, and a record of where they are from."""

from pathlib import Path
from typing import Any

from pipeline import stage

RAW = Path("data/raw")  # <class>/<file name>
SOURCE = Path("data/source.json")


def read_source() -> dict[str, Any]:
    """Origin, licence, counts and digest of the images; whether they are rendered; whether small copies may travel."""
    return stage.read_json(SOURCE, "fetch")
