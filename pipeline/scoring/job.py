"""A scoring job: which images there are, which parts of them are done, and what all parts say together."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leukdetect.contract import FILES
from leukdetect.model_file import Model
from leukdetect.runtime import cpus
from pipeline import cluster, stage
from pipeline.data import image_files, walk
from pipeline.scoring import worker
from pipeline.scoring.worker import Errand, Job
from pipeline.stage import Problem

LISTING, PART_ROWS = "_listing.parquet", 2000  # the underscore hides it from whoever reads the folder as one table
METADATA_KEY, LEFT_OUT_KEY = b"leukdetect", b"left_out"


def begin(out: Path, job: Job) -> tuple[int, list[tuple[int, int]]]:
    """Writes the listing unless it is there, and finds the parts that are not, or are damaged.

    Returns:
        How many images there are; the number of each missing part, and how many images it has.

    Raises:
        Problem: there are no images, one is named twice, or what is there is of another job.
    """
    listing = out / LISTING
    if not listing.is_file():
        _write_listing(listing, job)
    _refuse_another(listing, job)
    groups, todo = pq.read_metadata(listing), []
    for half_written in out.glob(".part-*"):  # by a process that was killed
        shutil.rmtree(half_written, ignore_errors=True)
    for part in range(groups.num_row_groups):
        rows, file = groups.row_group(part).num_rows, out / part_name(part)
        try:
            whole = file.is_file() and pq.read_metadata(file).num_rows == rows
        except pa.ArrowInvalid:  # after a power failure
            whole = False
        if whole:
            _refuse_another(file, job)
        else:
            todo.append((part, rows))
    return groups.num_rows, todo


def score_parts(
    out: Path, job: Job, model: Model, todo: list[tuple[int, int]], ray: str | None, seen: Callable[[int], object]
) -> Iterator[int]:
    """Writes the parts one after the other; yields how many images each has, once it is written."""
    for (part, rows), table in zip(todo, _tables(out / LISTING, job, model, todo, ray, seen), strict=True):
        with stage.writing(out / part_name(part)) as path:
            pq.write_table(table.replace_schema_metadata(_metadata(job)), path, compression="zstd")
        yield rows


def summary(out: Path, job: Job, now: int, seconds: float) -> str:
    """What all parts say together; `now` images were scored in so many seconds."""
    listed = pq.read_metadata(out / LISTING)
    decisions: Counter[str | None] = Counter()
    reasons: Counter[str] = Counter()
    for part in range(listed.num_row_groups):
        table = pq.read_table(out / part_name(part), columns=["decision", "reasons"])
        decisions.update(table["decision"].to_pylist())
        reasons.update(reason for each in table["reasons"].to_pylist() for reason in each or ())
    why = f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons.most_common())})" if reasons else ""
    pace = f"; {now:,} of them now, {now / seconds:.1f}/s" if now else "; nothing was left to do"
    return (
        f"{out}: {listed.num_rows:,} images, {decisions['report']:,} to report, {decisions['refer']:,} to refer{why}, "
        f"{decisions[None]:,} that could not be used{pace}\n"
        f"by {job.model} {job.model_version or 'of a file'}, {job.precision}, {job.model_sha256[:12]}…"
        f"{walk.lines(json.loads((listed.metadata or {}).get(LEFT_OUT_KEY, '{}')))}"
    )


def _write_listing(listing: Path, job: Job) -> None:
    """Writes which images there are, a row group for each part, without ever holding them all."""
    columns = pa.schema([("path", pa.string())], metadata=_metadata(job))
    left_out: Counter[str] = Counter()
    paths, hashes = _paths(job, left_out), []
    with stage.writing(listing) as temporary:
        with pq.ParquetWriter(temporary, columns) as writer:
            while group := list(islice(paths, PART_ROWS)):
                try:
                    writer.write_table(pa.table([group], schema=columns), row_group_size=PART_ROWS)
                except UnicodeEncodeError as error:
                    raise Problem(f"the name of an image is not UTF-8 ({error.object!r}); rename it") from error
                hashes.append(np.fromiter(map(hash, group), np.int64))  # 8 bytes an image, to find twins
            writer.add_key_value_metadata({LEFT_OUT_KEY: json.dumps(left_out)})
        if not hashes:
            raise Problem(f"{job.source}: no images{walk.but(left_out)}")
        everything = np.sort(np.concatenate(hashes))
        twins = everything[1:][np.diff(everything) == 0]
        if len(twins):
            first = next(each for each in _paths(job, Counter()) if hash(each) == twins[0])
            raise Problem(f"{job.source} names {len(twins)} images twice, such as {first}: one row an image")


def _tables(
    listing: Path, job: Job, model: Model, todo: list[tuple[int, int]], ray: str | None, seen: Callable[[int], object]
) -> Iterator[pa.Table]:
    """Scores each part with all of this machine's processors, or with one of a Ray cluster's."""
    with pq.ParquetFile(listing) as file:  # opened once: a billion images have half a million row groups
        parts = (_row_group(file, listing, part) for part, _ in todo)
        if not ray:
            for paths in parts:
                yield worker.score(paths, job, model, 2 * cpus(), seen)
            return
        path = model.located.path
        content = np.fromfile(path / FILES[model.contract.precision] if path.is_dir() else path, np.uint8)
        with cluster.connected(ray, worker.on_a_worker, Errand(job, content, model.located)) as over:
            for table in over(parts):
                seen(len(table))
                yield table


def _row_group(file: pq.ParquetFile, listing: Path, part: int) -> list[str]:
    try:
        paths: list[str] = file.read_row_group(part)["path"].to_pylist()
    except (pa.ArrowException, OSError, LookupError) as error:
        raise _damaged(listing, error) from error
    return paths


def _paths(job: Job, left_out: Counter[str]) -> Iterator[str]:
    if job.source.startswith(image_files.S3):
        return image_files.objects(job.source, left_out)
    if Path(job.source).is_dir():
        return (path.relative_to(job.root).as_posix() for path in walk.image_files(Path(job.source), left_out))
    return image_files.listed(Path(job.source))


def _metadata(job: Job) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps(asdict(job)).encode()}


def part_name(part: int) -> str:
    return f"part-{part:05}.parquet"


def _damaged(file: Path, error: Exception) -> Problem:
    return Problem(
        f"{file} is damaged, or no scoring job's ({str(error).splitlines()[0]}), so nobody can tell which images "
        f"were to be scored. Remove {file.parent}, or give another folder in --out, to begin anew."
    )


def _refuse_another(file: Path, job: Job) -> None:
    """Two models' answers never stand in one folder."""
    try:
        begun = dict(json.loads(pq.read_schema(file).metadata[METADATA_KEY]))
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error
    differs = [f"{key} {begun.get(key)} (now {value})" for key, value in asdict(job).items() if begun.get(key) != value]
    if differs:
        raise Problem(
            f"{file.parent} was begun with {', '.join(differs)}. Go on with the same, "
            "or give another folder in --out to begin anew."
        )
