"""Phase 1: the head, on a frozen base. With `weights: none` there is nothing to freeze, and all of it trains.

Reads:  data/features/, data/prepared/split.csv, params (features.weights, fine_tune.trainable_from, train_head)
Writes: models/head.keras (the whole model, float32), reports/history/train_head.csv
Run:    python -m pipeline.train_head
"""

from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline import features, model, params, prepare, stage, tracking, training
from pipeline.params import Params

HEAD = Path("models/head.keras")
HISTORY = Path("reports/history/train_head.csv")


def main() -> None:
    recipe = params.load()
    tracking.check()
    data = prepare.digest()
    run = tracking.run_id(recipe, data)
    keras.utils.set_random_seed(recipe.seed)

    views, val = features.read()
    train_labels, val_labels = (prepare.read(split)[1]["label"].to_numpy() for split in ("train", "val"))
    with model.strategy().scope():
        whole = features.base_model(recipe)
        part = model.trainable_part(whole, model.boundary(whole, recipe.fine_tune.trainable_from), bn_momentum=0.9)
        if recipe.features.weights == "none":
            model.set_trainable(part, lambda name: True, batch_norm=True)
            learner = part
        else:
            views, val, learner = _pooled(part, views, val)
        learner.compile(
            keras.optimizers.Adam(recipe.train_head.learning_rate),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,  # on the CPU XLA makes it up to five times slower
        )

    weights = training.class_weights(train_labels, len(recipe.classes), recipe.train_head.class_weights)
    state = stage.STATE / "train_head" / _state_key(recipe, data)
    history = training.fit(
        learner,
        epoch_data=lambda epoch: training.Views(
            views, train_labels, weights, recipe.train_head.batch_size, recipe.seed, epoch
        ),
        val=(val, val_labels),
        epochs=recipe.train_head.epochs,
        patience=recipe.train_head.patience,
        state=state,
        on_epoch=partial(tracking.log_epoch, run, "train_head"),
    )
    model.copy_weights(learner, whole)
    with stage.writing(HISTORY) as path:
        history.to_csv(path, index=False)
    with stage.writing(HEAD) as path:
        whole.save(path)
    training.forget(state)


def _pooled(part: keras.Model, views: np.ndarray, val: np.ndarray) -> tuple[np.ndarray, np.ndarray, keras.Model]:
    """Takes the views through the rest of the frozen base once, so that an epoch only costs the head.

    Returns:
        Pooled views float32 [V, n, D], pooled validation inputs [m, D], and the head as a model of them,
        sharing its layers with `part`.
    """
    pooled = part.get_layer(model.POOLED).output
    base = tf.function(keras.Model(part.input, pooled), reduce_retracing=True)
    model.set_trainable(part, lambda name: False, batch_norm=False)

    def forward(x: np.ndarray) -> np.ndarray:
        batches = range(0, len(x), 64)
        return np.concatenate([base(_as_input(x[i : i + 64]), training=False).numpy() for i in batches])

    stored = np.stack([forward(view) for view in stage.progress(views, "pooled views", unit="view")])
    head = keras.Model(pooled, part.output, name="head")
    return stored.astype(np.float32), forward(val).astype(np.float32), head


def _as_input(x: np.ndarray) -> np.ndarray:
    return np.asarray(x) if x.dtype == np.uint8 else x.astype(np.float32)


def _state_key(recipe: Params, data: str) -> str:
    return stage.state_key(
        recipe.model_dump_json(
            by_alias=True, include={"seed", "classes", "prepare", "model", "augment", "features", "train_head"}
        ),
        recipe.fine_tune.trainable_from,
        data,
    )


if __name__ == "__main__":
    stage.run(main)
