"""The trained network: where each phase of training leaves it, and how it is read."""

from pathlib import Path

import keras
import pandas as pd

from pipeline import stage

HEAD = Path("models/head.keras")
MODEL = Path("models/model.keras")
PHASES = {HEAD: "train_head", MODEL: "fine_tune"}


def load_model(path: Path = MODEL) -> keras.Model:
    """The whole float32 model. Raises Problem if it is missing."""
    return keras.models.load_model(stage.require(path, PHASES[path]), compile=False)


def save(whole: keras.Model, history: pd.DataFrame, path: Path) -> None:
    """Writes what a phase of training leaves: its history and the whole float32 model."""
    with stage.writing(Path(f"reports/history/{PHASES[path]}.csv")) as table:
        history.to_csv(table, index=False)
    with stage.writing(path) as model:
        whole.save(model)
    stage.seal(path)
