"""Files of pretrained weights, and the record beside each: FILE.weights.h5 and FILE.json."""

import datetime
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from leukdetect.runtime import processor
from pipeline import stage
from pipeline.network import classifier
from pipeline.registry import git
from pipeline.stage import Problem

SUFFIX = ".weights.h5"


def record(weights: Path) -> Path:
    """Where the record of a file of weights lies."""
    return weights.with_name(f"{weights.name.removesuffix(SUFFIX)}.json")


def free(out: Path, overwrite: bool) -> None:
    """Raises Problem if a base cannot be written there or would replace another, OSError if the folder is read-only."""
    if not out.name.endswith(SUFFIX) or out.name == SUFFIX or out.is_dir():
        raise Problem(f"--out: {out} must be a file that ends in {SUFFIX}, since Keras tells its format by that")
    if (taken := [path for path in (out, record(out)) if path.exists()]) and not overwrite:
        raise Problem(f"{taken[0]} exists: give another --out, or --overwrite to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def about(weights: Path) -> dict[str, Any]:
    """Name and hash of a file of weights, with origin and licence where their record lies beside it.

    Raises Problem if there is no such file.
    """
    if not weights.is_file():
        raise Problem(f"there is no file of weights {weights}")
    known = {"file": weights.name, "sha256": stage.sha256(weights)}
    with suppress(OSError, ValueError, LookupError, TypeError):  # another's JSON of that name
        said = json.loads(record(weights).read_bytes())
        known |= {name: str(said[name]) for name in ("origin", "licence")}
    return known


def credit(weights: str, backbone: str) -> str:
    """What is said after the data's origin of the base that `features.weights` names; empty where there is none."""
    if weights == "none":
        return ""
    if weights == "imagenet":
        return f"; base: {backbone} of keras.applications, trained on ImageNet"
    if not Path(weights).is_file():
        return f"; base: {backbone} of {Path(weights).name}, which is not on this machine"
    known = about(Path(weights))
    whose = "{origin}. Licence: {licence}".format(**known) if "origin" in known else "no record of its images beside it"
    return f"; base: {backbone} of {known['file']}, {known['sha256'][:12]} ({whose})"


def made(out: Path, run: str) -> dict[str, Any]:
    """What a record says of when, where and by what its file was made."""
    gpus = [tf.config.experimental.get_device_details(each) for each in tf.config.list_physical_devices("GPU")]
    cpu = processor().get("model name", "unknown")
    return {
        "weights_sha256": stage.sha256(out),
        "git_commit": git.git_commit(),
        "mlflow_run": run,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": ", ".join(str(each.get("device_name", "GPU")) for each in gpus) or cpu,
        "precision": classifier.precision(),
    }
