"""Trains a recipe on another split of the prepared images, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from pipeline import stage
from pipeline.data import prepared
from pipeline.network import precompute
from pipeline.params import PARAMS_FILE, Params
from pipeline.stage import Problem

if TYPE_CHECKING:
    import keras

ROOT = Path(__file__).parents[2]
STAGES = {"features": "data/features.json", "train_head": "models/head.keras", "fine_tune": "models/model.keras"}


def refit(recipe: Params, frame: pd.DataFrame, folder: Path, views_of: Params | None = None) -> "keras.Model":
    """Runs the training stages with these rows of split.csv, and returns the whole model.

    The folder has its own MLflow beside it. A stage that was done before an interruption is not done again.

    Args:
        views_of: this project's recipe, where it trains on all rows by the same seed: the views are taken from it.

    Raises Problem if a stage fails.
    """
    own = folder / prepared.PREPARED
    if not (own / "split.csv").is_file():
        own.mkdir(parents=True, exist_ok=True)
        (own / "images.npy").unlink(missing_ok=True)
        (own / "images.npy").symlink_to((prepared.PREPARED / "images.npy").resolve())
        raw = recipe.model_dump(mode="json", by_alias=True)
        if Path(recipe.features.weights).is_file():
            raw["features"]["weights"] = str(Path(recipe.features.weights).resolve())
        (folder / PARAMS_FILE).write_text(yaml.safe_dump(raw))
        with stage.writing(own / "split.csv") as path:
            frame.to_csv(path, index=False)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent.resolve()}/mlflow.db",
        "PYTHONPATH": str(ROOT),
    }
    if views_of and not (folder / STAGES["features"]).exists():
        precompute.take(views_of, folder)
    for name, output in STAGES.items():
        if name == "fine_tune" and not recipe.fine_tune.epochs:
            continue  # it would leave what train_head made
        made = folder / output
        if made.exists():  # made before an interruption
            continue
        done = subprocess.run([sys.executable, "-m", f"pipeline.{name}"], cwd=folder, env=environment, check=False)
        if done.returncode != 0:
            raise Problem(
                f"{name} failed in {folder}: what it printed above says why. Run it again to go on from there"
            )
    import keras  # only now, since TensorFlow takes seconds, and memory that the stages needed

    return keras.models.load_model(made, compile=False)
