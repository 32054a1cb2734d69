"""Scores many images with a registered model, as `POST /predict` would, into a folder of Parquet files.

Reads:  a folder, a CSV file with a column `path`, or s3://bucket/prefix; a model of the registry, or a model file.
        Where a flag is not given, the server's variable of that name: LEUKDETECT_MODEL, LEUKDETECT_MAX_PIXELS, …
Writes: OUT/_listing.parquet (which images; a row group for each part), OUT/part-00000.parquet, … (one row an image)
Run:    python -m pipeline.score smears/ --out scores [--model models:/leukdetect@champion] [--ray ADDRESS]
        (without --model: the champion of the recipe's register.name)

It goes on where it was when it is run again: what is written is done. The listing is made once, so each image of it
has one row whatever is added to the folder meanwhile. An image that cannot be used has its reason in `error`.
"""

import argparse
import os
import time
from pathlib import Path

from tqdm import tqdm

from leukdetect import model_file
from leukdetect.contract import FILES
from leukdetect.decoding import MAX_PIXELS
from leukdetect.model_file import Model, RefusedError
from leukdetect.registry import Located, Registry, RegistryError
from pipeline import cluster, params, sections, stage
from pipeline.data import image_files
from pipeline.registry import moved
from pipeline.scoring import job as jobs
from pipeline.scoring import patients
from pipeline.scoring.job import Job
from pipeline.stage import Problem

MAX_BODY_BYTES = 20_000_000  # the server's, so that an image which it refuses has no answer here either


def main() -> None:
    options = _options()
    model = _open(options)
    job = Job(
        *_source(options.source, options.root),
        model.contract.name,
        model.located.version,
        model.sha256,
        model.contract.precision,
        options.max_body_bytes,
        options.max_pixels,
    )
    with stage.alone(options.out):
        total, todo = jobs.begin(options.out, job)
        remaining = sum(rows for _, rows in todo)
        started, done = time.monotonic(), total - remaining
        with tqdm(total=total, initial=done, unit="image", disable=None) as bar:
            for rows in jobs.score_parts(options.out, job, model, todo, options.ray, bar.update):
                done += rows
                if bar.disable:  # in a log: a line a part
                    print(f"{done:,} of {total:,} images", flush=True)
        print(jobs.summary(options.out, job, remaining, time.monotonic() - started))
        if options.patient:
            print(f"by patient: {patients.write(options.out, options.patient, model.contract)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder, a CSV file with a column `path`, or s3://bucket/prefix")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the answers; go on with what is there")
    parser.add_argument("--root", help="where a CSV file's relative paths start; else its own folder")
    parser.add_argument("--patient", help="a pattern of the path, (?P<patient>…): OUT/patients.csv has a row for each")
    parser.add_argument(
        "--ray", default=os.environ.get(cluster.ADDRESS), help="a Ray cluster's address: use all its machines"
    )
    parser.add_argument(
        "--unhashed",
        action="store_true",
        default=os.environ.get("LEUKDETECT_UNHASHED", "").lower() in ("1", "true", "yes", "on"),
        help="take a version that was registered without hashes of its files",
    )
    for name, default, kind, meaning in (
        ("model", None, str, "models:/NAME@ALIAS, a file, or a folder with both; else the recipe's champion"),
        ("precision", "auto", str, "auto, int8 or fp32: which of two; auto: int8 where its golden set agrees"),
        ("cache-dir", ".serving", Path, "where downloaded models stay"),
        ("max-body-bytes", MAX_BODY_BYTES, int, "a larger file has no answer"),
        ("max-pixels", MAX_PIXELS, int, "a larger image has none"),
    ):
        variable = f"LEUKDETECT_{name.upper().replace('-', '_')}"
        value = os.environ.get(variable, default)
        if value == "":
            raise Problem(f"{variable} is empty; give it a value, or unset it for its default")
        parser.add_argument(f"--{name}", type=kind, default=value, help=meaning)
    options = parser.parse_args()
    try:
        sections.check_pattern("--patient", options.patient, "patient")
    except ValueError as error:
        raise Problem(str(error)) from error
    return options


def _open(options: argparse.Namespace) -> Model:
    if options.precision not in ("auto", *FILES):
        raise Problem(f"there is no precision {options.precision}; there are auto, {', '.join(FILES)}")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    registry = Registry(uri, options.cache_dir, options.unhashed)
    moved.settle(registry.tracking_uri)
    model = options.model or f"models:/{params.load().register_.name}@champion"
    try:
        is_folder = Path(model).is_dir()  # with one of each precision, as a registered version's
        located = Located(Path(model)) if is_folder else registry.locate(model)
        return model_file.load(located, options.precision)
    except (RegistryError, RefusedError) as error:
        raise Problem(str(error)) from error


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


if __name__ == "__main__":
    stage.run(main)
