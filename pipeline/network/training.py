"""One training loop for both phases: shuffled views, early stopping, best weights; goes on after an interruption."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from pipeline import stage
from pipeline.params import FineTune, TrainHead
from pipeline.stage import Problem

COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
VAL_BATCH = 32
AHEAD = 4  # batches that are read beside the computing


@dataclass
class Progress:
    """What an interrupted run needs to know to go on as if nothing had happened."""

    epoch: int = 0
    best_loss: float = float("inf")
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """The model, ready for `fit`: cross-entropy of whole-number labels, and accuracy."""
    model.compile(
        optimizer,
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # on the CPU XLA makes it up to five times slower
    )
    if model.distribute_strategy.num_replicas_in_sync == 1:
        # Else Keras makes the optimizer's and the metrics' variables while TensorFlow traces the first step, and has it
        # traced once more: for ResNet-50 half of the time before the first step. Over several devices it does not.
        model.optimizer.build(model.trainable_variables)
        blank = np.zeros((1, model.output_shape[-1]), np.float32)
        model.compute_metrics(None, np.zeros(1, np.int64), blank, np.ones(1, np.float32))
        model.reset_metrics()
    return model


class Batches(keras.utils.PyDataset):
    """Rows of a stored array in a given order, read as they are needed."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, batch: int, order: np.ndarray):
        # Two, since with one Keras hands reading over to tf.data with a tuned prefetch, and the end of every epoch then
        # waited for the tuner's next look: up to half of an epoch's time, with idle processors.
        super().__init__(workers=2, max_queue_size=AHEAD)
        self.inputs, self.labels, self.weights, self.batch, self.order = inputs, labels, weights, batch, order

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.sort(self.order[index * self.batch : (index + 1) * self.batch])  # in file order: the disk's friend
        x = self.inputs[rows]
        return (x.astype(np.float32) if x.dtype == np.float16 else x), self.labels[rows], self.weights[rows]


def epoch_data(
    views: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray, weights: np.ndarray, batch: int, seed: int, epoch: int
) -> Batches:
    """View `epoch mod V` of every image, in an order drawn from seed and epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(labels))
    return Batches(views[epoch % len(views)], labels, weights, batch, order)


def class_weights(labels: np.ndarray, classes: int, balanced: bool) -> np.ndarray:
    """A weight for each image [n]: n ÷ (classes × n of its class), or 1."""
    if not balanced:
        return np.ones(len(labels), np.float32)
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * counts))[labels].astype(np.float32)


def fit(
    model: keras.Model,
    train: tuple[Sequence[np.ndarray] | np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    phase: TrainHead | FineTune,
    *,
    seed: int,
    state: Path,
    on_epoch: Callable[[int, dict[str, float]], None],
) -> pd.DataFrame:
    """Trains a compiled model and leaves it with the weights of the epoch of least validation loss.

    Args:
        train: views [V][n, …] and labels [n].
        val: inputs [m, …] and labels [m].
        phase: its section of the recipe.
        seed: of the order of images.
        state: folder for what an interruption must not lose; the caller removes it once outputs are written.
        on_epoch: told each epoch's number, from 0, and its metrics as soon as they are known.

    Returns:
        One row an epoch, `COLUMNS`.
    """
    views, known = train
    weights, epochs = class_weights(known, model.output_shape[-1], phase.class_weights), phase.epochs
    progress = Progress()
    if (state / "progress.json").is_file():
        progress = Progress(**json.loads((state / "progress.json").read_text()))
        with np.load(state / "last.npz") as saved:
            for variable, name in zip(_variables(model), saved.files, strict=True):
                variable.assign(saved[name])
        print(f"going on after epoch {progress.epoch} of {epochs}")

    inputs, labels = val
    held_out = Batches(inputs, labels, np.ones(len(labels), np.float32), VAL_BATCH, np.arange(len(labels)))
    while progress.epoch < epochs and progress.epoch - 1 - progress.best_epoch < phase.patience:
        started = time.monotonic()
        logs = model.fit(
            epoch_data(views, known, weights, phase.batch_size, seed, progress.epoch),
            validation_data=held_out,
            epochs=1,
            shuffle=False,
            verbose="auto" if sys.stderr.isatty() else 0,
        ).history
        row = {name: float(logs[name][-1]) for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        row |= {
            "epoch": progress.epoch,
            "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
            "seconds": round(time.monotonic() - started, 2),
        }
        if not np.isfinite(row["loss"]):
            raise Problem(f"the loss became {row['loss']} in epoch {progress.epoch + 1}: lower the learning rate")
        progress.history.append(row)
        if row["val_loss"] < progress.best_loss:
            progress.best_loss, progress.best_epoch = row["val_loss"], progress.epoch
        progress.epoch += 1
        _save(model, state, progress)
        on_epoch(progress.epoch - 1, {name: value for name, value in row.items() if name != "epoch"})
        print(
            f"epoch {progress.epoch}/{epochs}: loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}, "
            f"validation loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:.3f}, {row['seconds']:.0f} s",
            flush=True,
        )

    print(f"best: epoch {progress.best_epoch + 1}, validation loss {progress.best_loss:.3f}")
    model.load_weights(state / "best.weights.h5")
    return pd.DataFrame(progress.history)[list(COLUMNS)]


def _save(model: keras.Model, state: Path, progress: Progress) -> None:
    """The new state replaces the old as one folder: an interruption leaves either, never half of each."""
    with stage.writing(state) as folder:
        folder.mkdir()
        np.savez(folder / "last.npz", *(variable.numpy() for variable in _variables(model)))
        if progress.best_epoch == progress.epoch - 1:
            model.save_weights(folder / "best.weights.h5")
        else:
            (folder / "best.weights.h5").hardlink_to(state / "best.weights.h5")
        (folder / "progress.json").write_text(json.dumps(asdict(progress)))


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All that the next step depends on: weights, the state of dropout's random numbers, and the optimizer's."""
    model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]
