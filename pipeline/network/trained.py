"""The trained network: where each phase of training leaves it, and how it is read."""

from pathlib import Path

import keras

from pipeline import stage

HEAD = Path("models/head.keras")  # of phase 1, `pipeline.train_head`
MODEL = Path("models/model.keras")  # of phase 2, `pipeline.fine_tune`


def load_model(path: Path = MODEL) -> keras.Model:
    """The whole float32 model. Raises Problem if it is missing."""
    stage.require(path, "train_head" if path == HEAD else "fine_tune")
    return keras.models.load_model(path, compile=False)
