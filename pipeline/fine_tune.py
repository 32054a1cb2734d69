"""Phase 2 trains the top of the base together with the head; with no epochs it leaves what phase 1 made.

Reads:  models/head.keras, data/features/ (made first if it is not here), data/prepared/, params (fine_tune)
Writes: models/model.keras (the whole model, float32), reports/history/fine_tune.csv
Run:    python -m pipeline.fine_tune
"""

import shutil
from functools import partial

import keras
import pandas as pd

from pipeline import params, stage
from pipeline.data import prepared
from pipeline.network import classifier, precompute, stored, trained, training
from pipeline.registry import tracking
from pipeline.sections import FineTune


@stage.alone(stage.STATE / "fine_tune")
def main() -> None:
    recipe = params.load()
    data = prepared.digest()
    run = tracking.run_id(recipe, data)
    seed = recipe.seed + 1  # so that dropout differs from phase 1
    keras.utils.set_random_seed(seed)

    if not recipe.fine_tune.epochs:
        trained.save(trained.load_model(trained.HEAD), pd.DataFrame(columns=list(training.COLUMNS)), trained.MODEL)
        return
    precompute.ensure(recipe)
    views, val = stored.read("inputs")
    labels, val_labels = (prepared.read(split)[1]["label"].to_numpy() for split in ("train", "val"))
    tune = recipe.fine_tune
    with classifier.strategy().scope():
        whole = trained.load_model(trained.HEAD)
        cut = classifier.boundary(whole, tune.trainable_from)
        part = classifier.trainable_part(whole, cut, classifier.precision())
        layers = classifier.base_layers(whole, tune.trainable_from)
        classifier.set_trainable(part, layers, batch_norm=tune.batch_norm == "trained")
        training.compiled(part, _optimizer(tune, len(labels)))

    key = stage.state_key(params.until(recipe, "fine_tune"), stage.sha256(trained.HEAD), data)
    state = stage.STATE / "fine_tune" / key
    log = partial(tracking.log_epoch, run, "fine_tune")
    with tracking.system_metrics(run):
        history = training.fit(part, (views, labels), (val, val_labels), tune, seed=seed, state=state, on_epoch=log)
    classifier.copy_weights(part, whole)
    trained.save(whole, history, trained.MODEL)
    shutil.rmtree(state)


def _optimizer(tune: FineTune, images: int) -> keras.optimizers.Optimizer:
    rate = training.rate(tune, images)
    if tune.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=tune.weight_decay)
    return keras.optimizers.Adam(rate)


if __name__ == "__main__":
    stage.run(main)
