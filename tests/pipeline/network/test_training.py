"""The training loop: going on after an interruption, stopping early, and agreeing with itself."""

import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from pipeline.network import classifier, training
from pipeline.sections import TrainHead
from pipeline.stage import Problem

VIEWS = np.random.default_rng(0).normal(size=(3, 96, 16)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 96)


def phase(epochs: int, patience: int, batch_size: int) -> TrainHead:
    return TrainHead(
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=0.01,
        schedule="constant",
        class_weights=False,
    )


class PowerCutError(Exception):
    pass


def toy(precision: str = "float32") -> keras.Model:
    """Dropout, batch normalisation and a schedule: all that a later epoch depends on."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((16,))
    for layer in (
        keras.layers.Dense(8, "relu", dtype=precision),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
    ):
        x = layer(x)
    rate = keras.optimizers.schedules.CosineDecay(0.01, 100)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    return training.compiled(model, keras.optimizers.Adam(rate))


def fit(
    state: Path,
    epochs: int = 5,
    patience: int = 10,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    precision: str = "float32",
) -> tuple[keras.Model, pd.DataFrame]:
    network = toy(precision)
    history = training.fit(
        network,
        (VIEWS, LABELS),
        (VIEWS[0], LABELS),
        phase(epochs=epochs, patience=patience, batch_size=32),
        seed=0,
        state=state,
        on_epoch=on_epoch,
    )
    return network, history


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_an_interrupted_run_ends_with_the_same_weights_as_an_uninterrupted_one(tmp_path: Path, precision: str) -> None:
    def interrupt(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 2:
            raise PowerCutError

    straight, history = fit(tmp_path / "straight", precision=precision)
    with pytest.raises(PowerCutError):
        fit(tmp_path / "broken", on_epoch=interrupt, precision=precision)
    resumed, resumed_history = fit(tmp_path / "broken", precision=precision)

    for a, b in zip(straight.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(a, b)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), resumed_history.drop(columns="seconds"))


def test_without_validation_all_epochs_run_and_the_last_ones_weights_stay(tmp_path: Path) -> None:
    """Also where an earlier epoch's training loss was lower: nothing is chosen by what is learnt from."""
    network, after = toy(), []
    history = training.fit(
        network,
        (VIEWS, LABELS),
        (VIEWS[0, :0], LABELS[:0]),
        phase(epochs=6, patience=1, batch_size=32),
        seed=0,
        state=tmp_path / "state",
        on_epoch=lambda epoch, metrics: after.append((metrics["loss"], network.get_weights())),
    )
    assert history["epoch"].tolist() == list(range(6))
    assert history[["val_loss", "val_accuracy"]].isna().all(axis=None)
    losses = [loss for loss, _ in after]
    assert min(losses) < losses[-1]
    for last, kept in zip(after[-1][1], network.get_weights(), strict=True):
        assert np.array_equal(last, kept)


def test_where_layers_compute_in_float16_the_loss_is_scaled() -> None:
    assert isinstance(toy("mixed_float16").optimizer, keras.optimizers.LossScaleOptimizer)
    assert not isinstance(toy("mixed_bfloat16").optimizer, keras.optimizers.LossScaleOptimizer)


def test_two_runs_with_the_same_seed_agree(tmp_path: Path) -> None:
    (a, _), (b, _) = fit(tmp_path / "a"), fit(tmp_path / "b")
    assert all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_two_runs_of_the_real_network_with_the_same_seed_agree(tmp_path: Path) -> None:
    """Of its last stage, from stored activations, as in the paper's phase 2; the stages before are made of the same."""
    labels = np.arange(24) % 4

    def train(state: Path) -> list[np.ndarray]:
        keras.utils.set_random_seed(7)
        whole = classifier.build(64, 4)
        part = classifier.trainable_part(whole, classifier.boundary(whole, "conv5_block1_1_relu"))
        views = np.random.default_rng(0).uniform(0, 2, (1, 24, *part.input_shape[1:])).astype(np.float32)
        training.compiled(part, keras.optimizers.Adam(1e-3))
        training.fit(
            part,
            (views, labels),
            (views[0], labels),
            phase(epochs=1, patience=1, batch_size=8),
            seed=0,
            state=state,
            on_epoch=lambda epoch, metrics: None,
        )
        return part.get_weights()

    for a, b in zip(train(tmp_path / "a"), train(tmp_path / "b"), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state that an interruption leaves."""

    def interrupt(epoch: int, metrics: dict[str, float]) -> None:
        raise PowerCutError

    state = tmp_path_factory.mktemp("interrupted") / "state"
    with pytest.raises(PowerCutError):
        fit(state, on_epoch=interrupt)
    return state


@pytest.mark.parametrize("file", ["history.json", training.LAST, training.BEST])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_a_state_that_is_damaged_is_dropped_and_training_begins_anew(
    tmp_path: Path, interrupted: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = shutil.copytree(interrupted, tmp_path / "state")
    kept = (state / file).read_bytes()
    (state / file).unlink()
    middle = len(kept) // 2
    flipped = kept[:middle] + bytes(255 - byte for byte in kept[middle : middle + 8]) + kept[middle + 8 :]
    if damage != "gone":
        (state / file).write_bytes({"cut": kept[:middle], "flipped": flipped, "empty": b""}[damage])
    network = keras.Model(inputs := keras.Input((16,)), keras.layers.Dense(3)(inputs))
    network.compile("adam", "mse")
    before = network.get_weights()
    assert training.restore(network, state) == []
    assert f"left in {state} cannot be used" in capsys.readouterr().out
    assert not state.exists()
    for a, b in zip(network.get_weights(), before, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("where", ["inputs", "validation"])
def test_a_loss_that_is_no_number_is_one_message(tmp_path: Path, where: str) -> None:
    broken = np.full_like(VIEWS, np.nan)
    with pytest.raises(Problem, match="loss became nan in epoch 1: lower the learning rate"):
        training.fit(
            training.compiled(
                keras.Model(inputs := keras.Input((16,)), keras.layers.Dense(3, "softmax")(inputs)),
                keras.optimizers.Adam(0.01),
            ),
            (broken if where == "inputs" else VIEWS, LABELS),
            (broken[0], LABELS),
            phase(epochs=2, patience=1, batch_size=32),
            seed=0,
            state=tmp_path / "s",
            on_epoch=lambda epoch, metrics: None,
        )
    assert not (tmp_path / "s").exists()


def test_a_step_is_traced_once() -> None:
    traced = []

    class Watched(keras.layers.Layer):
        def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
            traced.append(training)
            return x

    inputs = keras.Input((16,))
    network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(Watched()(inputs)))
    training.compiled(network, keras.optimizers.Adam(1e-3))
    traced.clear()
    network.fit(training.Batches(VIEWS[0], LABELS, np.ones(96, np.float32), 32, np.arange(96)), epochs=2, verbose=0)
    assert traced == [True]


def test_it_keeps_the_weights_of_the_epoch_with_the_least_validation_loss(tmp_path: Path) -> None:
    network, history = fit(tmp_path / "s", epochs=8)
    loss = network.evaluate(VIEWS[0], LABELS, verbose=0)[0]
    assert loss == pytest.approx(history["val_loss"].min(), abs=1e-5)


def test_it_stops_when_validation_stays_behind(tmp_path: Path) -> None:
    state = tmp_path / "s"
    network = toy()
    flat = np.zeros_like(VIEWS[0])  # nothing to learn from: the loss against shuffled labels only grows

    history = training.fit(
        network,
        (VIEWS, np.zeros(96, int)),
        (flat, np.full(96, 2)),
        phase(epochs=50, patience=3, batch_size=32),
        seed=0,
        state=state,
        on_epoch=lambda epoch, metrics: None,
    )
    assert len(history) == int(history["val_loss"].argmin()) + 1 + 3
    assert len(history) < 50


def test_each_epoch_takes_the_next_view_in_its_own_order() -> None:
    views = np.arange(3 * 10).reshape(3, 10, 1).astype(np.float32)
    labels = np.arange(10)
    seen = []
    for epoch in range(4):
        batches = training.epoch_data(views, labels, np.ones(10, np.float32), 4, 0, epoch)
        x = np.concatenate([batches[i][0] for i in range(len(batches))])[:, 0]
        y = np.concatenate([batches[i][1] for i in range(len(batches))])
        assert np.array_equal(x, y + 10 * (epoch % 3))  # view epoch mod 3, labels with their images
        assert sorted(y) == list(range(10))
        seen.append(tuple(y))
    assert len(set(seen)) == 4


def test_class_weights_make_every_class_count_the_same() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2] * 1)
    weights = training.class_weights(labels, balanced=True)
    assert [weights[labels == c].sum() for c in range(3)] == pytest.approx([10 / 3] * 3)
    assert training.class_weights(labels, balanced=False).tolist() == [1] * 10
