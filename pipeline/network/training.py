"""The training loop of both phases: shuffled views, early stopping, best weights; resumes after an interruption."""

import json
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from sklearn.utils.class_weight import compute_sample_weight

from pipeline import stage
from pipeline.sections import FineTune, TrainHead
from pipeline.stage import Problem

COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
VAL_BATCH = 32
LAST, BEST = "last.npz", "best.weights.h5"  # weights, of the state that an interruption leaves
AHEAD = 4  # batches that are read beside the computing


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """The model, ready for `fit`: cross-entropy of whole-number labels, and accuracy."""
    model.compile(
        scaling(model, optimizer),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # on the CPU XLA makes it up to five times slower
    )
    if model.distribute_strategy.num_replicas_in_sync == 1:
        # Otherwise Keras creates the variables of optimizer and metrics while TensorFlow traces the first step, which
        # is then traced again: for ResNet-50 half of the time before the first step. Not so over several devices.
        model.optimizer.build(model.trainable_variables)
        blank = np.zeros((1, model.output_shape[-1]), np.float32)
        model.compute_metrics(None, np.zeros(1, np.int64), blank, np.ones(1, np.float32))
        model.reset_metrics()
    return model


def scaling(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer, scaling the loss where layers compute in float16, in which small gradients would become 0.

    Keras does so by itself only where the model's own policy says so, not its layers'.
    """
    halves = any(layer.dtype_policy.name == "mixed_float16" for layer in model.layers)
    return keras.optimizers.LossScaleOptimizer(optimizer) if halves else optimizer


def rate(phase: TrainHead | FineTune, images: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """A phase's learning rate: constant, or by a cosine to zero over all its epochs of so many images."""
    if phase.schedule == "constant":
        return phase.learning_rate
    return keras.optimizers.schedules.CosineDecay(phase.learning_rate, -(-images // phase.batch_size) * phase.epochs)


class Batches(keras.utils.PyDataset):
    """Rows of a stored array in a given order, read as they are needed."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, batch: int, order: np.ndarray):
        # Two workers: with one, Keras reads through tf.data with a tuned prefetch, and the end of every epoch waits for
        # the tuner's next turn: up to half of an epoch's time, with idle processors.
        super().__init__(workers=2, max_queue_size=AHEAD)
        self.inputs, self.labels, self.weights, self.batch, self.order = inputs, labels, weights, batch, order

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.sort(self.order[index * self.batch : (index + 1) * self.batch])  # a disk reads faster in file order
        x = self.inputs[rows]
        return (x.astype(np.float32) if x.dtype == np.float16 else x), self.labels[rows], self.weights[rows]


def epoch_data(
    views: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray, weights: np.ndarray, batch: int, seed: int, epoch: int
) -> Batches:
    """View `epoch mod V` of every image, in an order drawn from seed and epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(labels))
    return Batches(views[epoch % len(views)], labels, weights, batch, order)


def class_weights(labels: np.ndarray, balanced: bool) -> np.ndarray:
    """A weight for each image [n]: n ÷ (classes × n of its class), or 1."""
    return np.asarray(compute_sample_weight("balanced" if balanced else None, labels), np.float32)


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

    Without validation images it runs all epochs and keeps the last one's weights: nothing is chosen by what it learns
    from.

    Args:
        train: views [V][n, …] and labels [n].
        val: inputs [m, …] and labels [m]; m may be 0.
        phase: its section of the recipe.
        seed: of the order of images.
        state: folder for what an interruption must not lose; the caller removes it once outputs are written.
        on_epoch: called with each epoch's number, from 0, and its metrics.

    Returns:
        One row an epoch, `COLUMNS`.
    """
    views, known = train
    weights = class_weights(known, phase.class_weights)
    history = restore(model, state)
    if history:
        print(f"going on after epoch {len(history)} of {phase.epochs}")

    inputs, labels = val
    ones = np.ones(len(labels), np.float32)
    held_out = Batches(inputs, labels, ones, VAL_BATCH, np.arange(len(labels))) if len(labels) else None
    while (epoch := len(history)) < phase.epochs and epoch - 1 - _best(history) < phase.patience:
        started = time.monotonic()
        logs = model.fit(
            epoch_data(views, known, weights, phase.batch_size, seed, epoch),
            validation_data=held_out,
            epochs=1,
            shuffle=False,
            verbose="auto" if sys.stderr.isatty() else 0,
        ).history
        row = {name: float(logs[name][-1]) for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in logs}
        row["learning_rate"] = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
        row["seconds"] = round(time.monotonic() - started, 2)
        for name in ("loss", "val_loss"):
            if not np.isfinite(row.get(name, 0)):
                raise Problem(f"the {name} became {row[name]} in epoch {epoch + 1}: lower the learning rate")
        history.append({"epoch": epoch, **row})
        save(model, state, history)
        on_epoch(epoch, row)
        by_val = f"validation loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:.3f}, " if held_out else ""
        print(
            f"epoch {epoch + 1}/{phase.epochs}: loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}, "
            f"{by_val}{row['seconds']:.0f} s",
            flush=True,
        )

    best = _best(history)
    if held_out:
        print(f"best: epoch {best + 1}, validation loss {history[best]['val_loss']:.3f}")
    model.load_weights(state / BEST)
    return pd.DataFrame(history, columns=list(COLUMNS))


def _best(history: list[dict[str, float]]) -> int:
    """The first epoch of least validation loss, the last where there is none; -1 before there is any epoch."""
    return min(range(len(history)), key=lambda epoch: history[epoch].get("val_loss", -epoch), default=-1)


def restore(model: keras.Model, state: Path) -> list[dict[str, float]]:
    """Puts the model where an interrupted run left it; a state that is damaged is dropped, and said to be."""
    if not state.is_dir():
        return []
    try:
        kept = json.loads((state / "history.json").read_text())
        history: list[dict[str, float]] = kept["epochs"]
        if kept["best"] != stage.sha256(state / BEST):
            raise ValueError(f"{BEST} is not as it was written")
        with (state / LAST).open("rb") as file, np.load(file) as saved:  # which holds a checksum of each array
            values = [saved[name] for name in saved.files]
        variables = _variables(model)
        if [variable.shape for variable in variables] != [value.shape for value in values]:
            raise ValueError("it is of another network")
    except (OSError, ValueError, LookupError, TypeError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        print(f"what an interrupted run left in {state} cannot be used ({error}): training begins anew")
        shutil.rmtree(state)
        return []
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return history


def save(model: keras.Model, state: Path, history: list[dict[str, float]]) -> None:
    """Replaces the state as one folder, so that an interruption leaves the old state or the new one."""
    with stage.writing(state) as folder:
        folder.mkdir()
        np.savez(folder / LAST, *(variable.numpy() for variable in _variables(model)))
        if _best(history) == len(history) - 1:
            model.save_weights(folder / BEST)
        else:
            (folder / BEST).hardlink_to(state / BEST)
        (folder / "history.json").write_text(json.dumps({"epochs": history, "best": stage.sha256(folder / BEST)}))


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All that the next step depends on: weights, the state of dropout's random numbers, and the optimizer's."""
    if not model.optimizer.built:  # one that scales the loss would make its own variables a second time
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]
