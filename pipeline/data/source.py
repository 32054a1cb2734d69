"""What `pipeline.fetch` brought: the images as they came, and where they are from."""

import json
from pathlib import Path
from typing import Any

from pipeline.stage import Problem

RAW = Path("data/raw")  # <class>/<file name>
SOURCE = Path("data/source.json")


def read_source() -> dict[str, Any]:
    """Origin, licence, counts and digest of the images; whether they are rendered; whether small copies may travel."""
    if not SOURCE.is_file():
        raise Problem(f"{SOURCE} is missing; `dvc repro fetch` makes it")
    source: dict[str, Any] = json.loads(SOURCE.read_text())
    return source
