"""Scores many images with a registered model, as `POST /predict` would, into a folder of Parquet files.

Reads:  a folder, a CSV file with a column `path`, or s3://bucket/prefix; a model of the registry, or a model file
Writes: OUT/_listing.parquet (which images; a row group for each part), OUT/part-00000.parquet, … (one row an image)
Run:    python -m pipeline.score smears/ --out scores [--model models:/leukdetect@champion] [--ray ADDRESS]

It goes on where it was when it is run again: what is written is done. The listing is made once, so each image of it
has one row whatever is added to the folder meanwhile. An image that cannot be used has its reason in `error`.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from leukdetect import model_file, registry
from leukdetect.contract import FILES
from leukdetect.model_file import Model
from leukdetect.registry import Located
from leukdetect.runtime import cpus
from pipeline import cluster, stage
from pipeline.data import image_files
from pipeline.scoring import worker
from pipeline.scoring.worker import Errand, Limits
from pipeline.stage import Problem
from serving.settings import Settings

LISTING, PART_ROWS = "_listing.parquet", 2000  # the underscore hides it from whoever reads the folder as one table
METADATA_KEY = b"leukdetect"


@dataclass(frozen=True)
class Job:
    """All that decides what the rows say. It is in the listing and in every part."""

    source: str
    root: str  # where relative paths start
    model: str
    model_version: str | None
    model_sha256: str
    precision: str
    max_body_bytes: int
    max_pixels: int

    @property
    def limits(self) -> Limits:
        return Limits(self.max_body_bytes, self.max_pixels)


def main() -> None:
    options = _options()
    settings = Settings(model=options.model or Settings().model, precision=options.precision or Settings().precision)
    loaded = open_model(settings)
    source, root = _source(options.source, options.root)
    job = Job(
        source,
        root,
        loaded.contract.name,
        loaded.located.version,
        loaded.sha256,
        loaded.contract.precision,
        settings.max_body_bytes,
        settings.max_pixels,
    )
    listing = options.out / LISTING
    if not listing.is_file():
        write_listing(listing, job)
    _refuse_another(listing, job)
    todo = left_to_do(options.out, job)
    total = pq.read_metadata(listing).num_rows
    remaining = sum(rows for _, rows in todo)
    started = time.monotonic()
    with tqdm(total=total, initial=total - remaining, unit="image", disable=not sys.stderr.isatty()) as bar:
        done = total - remaining
        for part, table in score_parts(loaded, job, listing, todo, options.ray, bar.update):
            with stage.writing(options.out / _name(part)) as path:
                pq.write_table(table.replace_schema_metadata(_metadata(job)), path, compression="zstd")
            done += len(table)
            if bar.disable:  # in a log: a line a part
                print(f"{done:,} of {total:,} images", flush=True)
    print(summary(options.out, job, remaining, time.monotonic() - started))


def open_model(settings: Settings) -> Model:
    """Finds and loads a model as the server does; a folder with both precisions will do too.

    Raises:
        Problem: there is none, or it was refused.
    """
    try:
        folder = Path(settings.model)
        located = Located(folder) if folder.is_dir() else settings.registry.locate(settings.model)
        return model_file.load(located, settings.precision, cpus())
    except (registry.RegistryError, model_file.RefusedError) as error:
        raise Problem(str(error)) from error


def write_listing(path: Path, job: Job) -> None:
    """Writes which images there are, a row group for each part, without ever holding them all.

    Raises:
        Problem: there are none, one is named twice, or its name cannot be written as UTF-8.
    """
    columns = pa.schema([("path", pa.string())], metadata=_metadata(job))
    paths, hashes = _paths(job), []
    with stage.writing(path) as temporary:
        with pq.ParquetWriter(temporary, columns) as writer:
            while group := list(islice(paths, PART_ROWS)):
                try:
                    writer.write_table(pa.table([group], schema=columns), row_group_size=PART_ROWS)
                except UnicodeEncodeError as error:
                    raise Problem(f"the name of an image is not UTF-8 ({error.object!r}); rename it") from error
                hashes.append(np.fromiter(map(hash, group), np.int64))  # 8 bytes an image, to find twins
        if not hashes:
            raise Problem(f"{job.source}: no images ({' '.join(sorted(image_files.EXTENSIONS))})")
        everything = np.sort(np.concatenate(hashes))
        twins = everything[1:][np.diff(everything) == 0]
        if len(twins):
            first = next(each for each in _paths(job) if hash(each) == twins[0])
            raise Problem(f"{job.source} names {len(twins)} images twice, such as {first}: one row an image")


def left_to_do(out: Path, job: Job) -> list[tuple[int, int]]:
    """The parts that are not there or are damaged, as their number and how many images each has.

    Raises:
        Problem: a part is of another model.
    """
    groups = pq.read_metadata(out / LISTING)
    todo = []
    for half_written in out.glob(".part-*"):  # by a process that was killed
        shutil.rmtree(half_written, ignore_errors=True)
    for part in range(groups.num_row_groups):
        rows = groups.row_group(part).num_rows
        file = out / _name(part)
        try:
            whole = file.is_file() and pq.read_metadata(file).num_rows == rows
        except pa.ArrowInvalid:  # after a power failure
            whole = False
        if whole:
            _refuse_another(file, job)
        else:
            todo.append((part, rows))
    return todo


def score_parts(
    loaded: Model, job: Job, listing: Path, todo: list[tuple[int, int]], ray: str | None, seen: Callable[[int], object]
) -> Iterator[tuple[int, pa.Table]]:
    """Scores the parts one after the other with all of this machine's processors, or each by one of a Ray cluster's.

    From a cluster too the rows come here: only this process writes.
    """
    with pq.ParquetFile(listing) as file:  # opened once: a billion images have half a million row groups
        parts = (file.read_row_group(part)["path"].to_pylist() for part, _ in todo)
        if not ray:
            for (part, _), paths in zip(todo, parts, strict=True):
                yield part, worker.score(paths, job.root, loaded, job.limits, 2 * cpus(), seen)
            return
        path = loaded.located.path
        model_file = path / FILES[loaded.contract.precision] if path.is_dir() else path
        errand = Errand(np.fromfile(model_file, np.uint8), loaded.sha256, loaded.located, job.root, job.limits)
        with cluster.connected(ray, worker.on_a_worker, errand) as over:
            for (part, rows), table in zip(todo, over(parts), strict=True):
                seen(rows)
                yield part, table


def summary(out: Path, job: Job, now: int, seconds: float) -> str:
    """What all parts say together.

    Raises:
        Problem: images or rows are missing, which cannot be.
    """
    listed, rows = pq.read_metadata(out / LISTING), 0
    decisions: Counter[str | None] = Counter()
    reasons: Counter[str] = Counter()
    for part in range(listed.num_row_groups):
        table = pq.read_table(out / _name(part), columns=["decision", "reasons"])
        rows += len(table)
        decisions.update(table["decision"].to_pylist())
        reasons.update(reason for each in table["reasons"].to_pylist() for reason in each or ())
    if rows != listed.num_rows:
        raise Problem(f"{out} has {rows} rows for {listed.num_rows} images; remove it and begin again")
    why = f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons.most_common())})" if reasons else ""
    pace = f"; {now:,} of them now, {now / seconds:.1f}/s" if now else "; nothing was left to do"
    return (
        f"{out}: {rows:,} images, {decisions['report']:,} to report, {decisions['refer']:,} to refer{why}, "
        f"{decisions[None]:,} that could not be used{pace}\n"
        f"by {job.model} {job.model_version or 'of a file'}, {job.precision}, {job.model_sha256[:12]}…"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a folder, a CSV file with a column `path`, or s3://bucket/prefix")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the answers; go on with what is there")
    parser.add_argument("--root", help="where a CSV file's relative paths start; else its own folder")
    parser.add_argument("--model", help="models:/NAME@ALIAS, a model file, or a folder with one of each precision")
    parser.add_argument(
        "--ray", default=os.environ.get(cluster.ADDRESS), help="a Ray cluster's address: use all its machines"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "int8"), help="which of two; auto: as the server")
    return parser.parse_args()


def _source(source: str, root: str | None) -> tuple[str, str]:
    """What is to be scored, wherever it is run from, and where its relative paths start."""
    if source.startswith(image_files.S3):
        return source, ""
    path = Path(source).resolve()
    if path.is_dir():
        return str(path), str(path)
    if path.is_file():
        beside = root or str(path.parent)
        return str(path), beside if beside.startswith(image_files.S3) else str(Path(beside).resolve())
    raise Problem(f"{source} is no folder, no file and no {image_files.S3}bucket/prefix")


def _paths(job: Job) -> Iterator[str]:
    if job.source.startswith(image_files.S3):
        return image_files.objects(job.source)
    if Path(job.source).is_dir():
        return (path.relative_to(job.root).as_posix() for path in image_files.image_files(Path(job.source)))
    return image_files.listed(Path(job.source))


def _name(part: int) -> str:
    return f"part-{part:05}.parquet"


def _metadata(job: Job) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps(asdict(job)).encode()}


def _refuse_another(file: Path, job: Job) -> None:
    """Two models' answers never stand in one folder."""
    begun = json.loads(pq.read_schema(file).metadata[METADATA_KEY])
    differs = [f"{key} {begun.get(key)} (now {value})" for key, value in asdict(job).items() if begun.get(key) != value]
    if differs:
        raise Problem(
            f"{file.parent} was begun with {', '.join(differs)}. Go on with the same, "
            "or give another folder in --out to begin anew."
        )


if __name__ == "__main__":
    stage.run(main)
