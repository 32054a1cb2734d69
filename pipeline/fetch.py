"""Brings the images here, from the source that the recipe names, sorted by class.

Reads:  params.yaml (fetch, classes, demo, seed) and the source
Writes: data/raw/<class>/<original file name>, then data/source.json (where from, licence, counts, digest)
Run:    python -m pipeline.fetch
"""

import hashlib
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from pipeline import params, stage
from pipeline.data import class_folders, sources, walk
from pipeline.data.source import RAW, SOURCE
from pipeline.stage import Problem


@stage.alone(sources.STATE)
def main() -> None:
    recipe = params.load()
    with tempfile.TemporaryDirectory(prefix="work.", dir=sources.STATE) as name:
        work = Path(name)
        fetched = sources.BY_NAME[recipe.fetch.source](recipe, work)
        images, left_out = class_folders.find_images(fetched.folder, recipe.classes, recipe.fetch)
        with stage.writing(RAW) as raw:
            digest, size = place(images, raw, move=fetched.folder == work)  # what is not ours is left as it is
            SOURCE.unlink(missing_ok=True)  # it describes the former images, which are replaced in the next moment

    counts = Counter(target.split("/")[0] for target in images)
    stage.write_json(
        SOURCE,
        {
            **recipe.fetch.model_dump(include={"source", "origin", "licence", "thumbnails", "synthetic"}),
            "version": fetched.version,
            "archive_sha256": fetched.archive_sha256,
            "images": dict(counts),
            "sha256": digest,
        },
    )
    print(f"source:  {recipe.fetch.source}: {recipe.fetch.origin}" + (" (synthetic)" if recipe.fetch.synthetic else ""))
    print(f"licence: {recipe.fetch.licence}")
    by_class = ", ".join(f"{c.key} {counts[c.key]:,}" for c in recipe.classes)
    print(f"images:  {len(images):,}, {size / 1e6:,.1f} MB: {by_class}{walk.lines(left_out)}")


def place(images: dict[str, Path], raw: Path, *, move: bool) -> tuple[str, int]:
    """Copies or moves the images to `raw/<class>/<file name>`; returns the digest of all of them, and their bytes.

    The digest is the SHA-256 of what `sha256sum` prints for the files in order of their paths, so that it can be
    checked without Python.
    """
    listing, size = hashlib.sha256(), 0
    for target in stage.progress(sorted(images), "copying"):
        path = raw / target
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            (shutil.move if move else shutil.copyfile)(images[target], path)
        except OSError as error:
            if stage.is_full_disk(error):
                raise
            raise Problem(f"{images[target]} cannot be copied ({error.strerror or error})") from error
        listing.update(f"{stage.sha256(path)}  {target}\n".encode())
        size += path.stat().st_size
    return listing.hexdigest(), size


if __name__ == "__main__":
    stage.run(main)
