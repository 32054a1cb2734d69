"""Phase 2: the top of the base and the head, end to end.

Reads:  models/head.keras, data/features/, data/prepared/split.csv, params (fine_tune)
Writes: models/model.keras (the whole model, float32), reports/history/fine_tune.csv
Run:    python -m pipeline.fine_tune
"""

from functools import partial
from pathlib import Path

import keras

from pipeline import params, stage
from pipeline.data import prepared
from pipeline.network import classifier, stored, training
from pipeline.network.trained import HEAD, MODEL, load_model
from pipeline.params import FineTune, Params
from pipeline.registry import tracking

HISTORY = Path("reports/history/fine_tune.csv")


def main() -> None:
    recipe = params.load()
    tracking.check()
    data = prepared.digest()
    run = tracking.run_id(recipe, data)
    keras.utils.set_random_seed(recipe.seed + 1)  # not the same dropout again as in phase 1

    views, val = stored.read("inputs")
    train_labels, val_labels = (prepared.read(split)[1]["label"].to_numpy() for split in ("train", "val"))
    tune = recipe.fine_tune
    steps = -(-len(train_labels) // tune.batch_size) * tune.epochs
    trained_bn = tune.batch_norm == "trained"
    with classifier.strategy().scope():
        whole = load_model(HEAD)
        cut = classifier.boundary(whole, tune.trainable_from)
        part = classifier.trainable_part(
            whole, cut, bn_momentum=0.9 if trained_bn else None, precision=classifier.precision()
        )
        top = classifier.base_layers(whole)
        if tune.trainable_from != "all":
            top = top[top.index(tune.trainable_from) :]
        classifier.set_trainable(part, lambda name: name in top, batch_norm=trained_bn)
        training.compiled(part, _optimizer(tune, steps))

    weights = training.class_weights(train_labels, len(recipe.classes), tune.class_weights)
    state = stage.STATE / "fine_tune" / _state_key(recipe, data)
    history = training.fit(
        part,
        epoch_data=lambda epoch: training.Views(views, train_labels, weights, tune.batch_size, recipe.seed + 1, epoch),
        val=(val, val_labels),
        epochs=tune.epochs,
        patience=tune.patience,
        state=state,
        on_epoch=partial(tracking.log_epoch, run, "fine_tune"),
    )
    classifier.copy_weights(part, whole)
    with stage.writing(HISTORY) as path:
        history.to_csv(path, index=False)
    with stage.writing(MODEL) as path:
        whole.save(path)
    training.forget(state)


def _optimizer(tune: FineTune, steps: int) -> keras.optimizers.Optimizer:
    rate = tune.learning_rate
    if tune.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(tune.learning_rate, steps)
    if tune.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=tune.weight_decay)
    return keras.optimizers.Adam(rate)


def _state_key(recipe: Params, data: str) -> str:
    sections = {"seed", "classes", "prepare", "model", "augment", "features", "train_head", "fine_tune"}
    return stage.state_key(recipe.model_dump_json(by_alias=True, include=sections), stage.sha256(HEAD), data)


if __name__ == "__main__":
    stage.run(main)
