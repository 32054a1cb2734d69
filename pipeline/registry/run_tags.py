"""What MLflow's pages show of a run: a name that says what it is, where it came from, who made it."""

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline import params
from pipeline.data import outside
from pipeline.registry import git
from pipeline.stage import Problem

RECIPES = Path("recipes")  # a folder each; the project's own folder is the demo's
PLACE = "leukdetect.place"  # of a machine and a folder, where one pass runs at a time
EXPERIMENT = "leukdetect.dvc_experiment"
SHOWN = 3  # differences that a name has
LONGEST = 40  # characters of a difference


def name(recipe: params.Params) -> str:
    """Such as `demo (sunny-mole): fine_tune.learning_rate=0.0001, ResNet50 64px none, 1a2b3c4`.

    The recipe; DVC's experiment; what differs from the main branch's recipe, or from what the experiment began with;
    backbone, image size and weights; the recipe's digest. A list of runs shows the beginning.
    """
    own, experiment = own_folder() or recipe.fetch.source, os.environ.get("DVC_EXP_NAME")
    said = _differs(recipe)
    if len(said) > SHOWN:
        said = [*said[:SHOWN], f"{len(said) - SHOWN} more"]
    network = f"{recipe.model.backbone} {recipe.prepare.image_size}px {Path(recipe.features.weights).name}"
    whose = f"{own} ({experiment})" if experiment else own
    return f"{whose}: {', '.join([*said, network, params.digest(recipe)[:7]])}"


def tags() -> dict[str, str]:
    """As MLflow's own clients name them, so that its columns Source, Version and User are filled."""
    commit = git.git_commit()
    found = {f"leukdetect.outside.{name}": record["sha256"] for name, record in outside.read().items()}
    found |= {
        PLACE: place(),
        EXPERIMENT: os.environ.get("DVC_EXP_NAME", ""),
        "leukdetect.git_commit": commit,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": git.path_of("dvc.yaml"),
        "mlflow.user": git.who(),
        "mlflow.source.git.branch": git.branch(),
        "mlflow.source.git.repoURL": git.remote(),
    }
    if commit != git.UNKNOWN:
        found["mlflow.source.git.commit"] = commit.removesuffix(git.DIRTY)
        found["mlflow.source.git.dirty"] = str(commit.endswith(git.DIRTY)).lower()
    return {tag: value for tag, value in found.items() if value}


def own_folder() -> str | None:
    """The name of the recipe whose folder this is; None in any other, such as the project's, which is the demo's."""
    here = Path.cwd()
    return here.name if here.parent.name == RECIPES.name and (here.parents[1] / "pipeline").is_dir() else None


def place() -> str:
    """A digest of this machine's name and this folder's path: a path may name somebody."""
    return hashlib.sha256(f"{socket.gethostname()}\n{Path.cwd()}".encode()).hexdigest()[:16]


def flat(values: dict[str, Any], separator: str) -> dict[str, Any]:
    """Nested dicts as one dict of joined keys. Lists stay whole."""
    row: dict[str, Any] = pd.json_normalize(values, sep=separator).astype(object).to_dict("records")[0]
    return row


def texts(recipe: params.Params) -> dict[str, str]:
    """Every parameter by its full name."""
    values = flat(recipe.model_dump(mode="json", by_alias=True), ".").items()
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values}


def _differs(recipe: params.Params) -> list[str]:
    base = os.environ.get("DVC_EXP_BASELINE_REV") or git.main_branch()
    try:
        former = params.parse(yaml.safe_load(git.ask("show", f"{base}:./{params.PARAMS_FILE}")))
    except (git.GitError, Problem, yaml.YAMLError):
        return []  # a new recipe, or one of an earlier version of this project
    then = texts(former)
    return [f"{key}={value}"[:LONGEST] for key, value in texts(recipe).items() if then.get(key) != value]
