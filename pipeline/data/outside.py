"""What a recipe names outside its folder, and DVC does not see: its images, weights, another laboratory's smears.

`pipeline.outside` writes down how many files each has and a digest of them; the stage that reads them depends on that.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline import stage
from pipeline.data import walk
from pipeline.params import Params
from pipeline.stage import Problem

OUTSIDE = Path("data/outside")  # <name>.json; empty where the recipe names nothing
STATE = stage.STATE / "outside"


def named(recipe: Params) -> dict[str, Path | None]:
    """The folder or file that each record is of; None where the recipe names none."""
    weights, fetch = recipe.features.weights, recipe.fetch
    paths = {
        "images": fetch.folder if fetch.source == "folder" else None,
        "weights": None if weights in ("none", "imagenet") else weights,
        "other_laboratory": recipe.evaluate.other_laboratory,
    }
    return {name: Path(path).expanduser() if path else None for name, path in paths.items()}


def read() -> dict[str, dict[str, Any]]:
    """Each record that there is: `files` and `sha256`."""
    found = {path.stem: stage.read_json(path, "outside") for path in sorted(OUTSIDE.glob("*.json"))}
    return {name: record for name, record in found.items() if record}


def look(path: Path, table: str | None = None) -> dict[str, Any] | None:
    """The number of files and the digest of a file, or of a folder's images and its table; None if nothing is there.

    The digest is the SHA-256 of what `sha256sum` prints for the files. A file that has its size and times of before is
    not read again.

    Raises Problem: something cannot be read.
    """
    files = [path] if path.is_file() else list(walk.image_files(path, Counter())) if path.is_dir() else []
    if table and (path / table).is_file():
        files.append(path / table)
    if not files:
        return None
    kept = STATE / f"{stage.state_key(str(path.absolute()))}.json"
    try:
        former = json.loads(kept.read_bytes())
    except (OSError, ValueError):
        former = {}
    known: dict[str, list[Any]] = {}
    digest = hashlib.sha256()
    for file in stage.progress(files, f"looking at {path.name}", unit="file"):
        name = file.relative_to(path).as_posix() if file != path else ""
        try:
            now = file.stat()
            times = [now.st_size, now.st_mtime_ns, now.st_ctime_ns]
            key = stage.state_key(name)  # a name may be a patient's, and stays where the data is
            found, sha256 = former.get(key, [None, ""])
            known[key] = [times, sha256 if found == times else stage.sha256(file)]
        except OSError as error:
            raise Problem(f"{walk.shown(file)} cannot be read ({error.strerror})") from error
        digest.update(f"{known[key][1]}  {name}\n".encode())
    stage.write_json(kept, known)
    return {"files": len(files), "sha256": digest.hexdigest()}
