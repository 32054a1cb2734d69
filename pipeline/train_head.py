"""Phase 1 trains the head on a frozen base; with `weights: none` nothing is frozen, and the whole network trains.

Reads:  data/features/ (made first if it is not here), data/prepared/, params (features.weights,
        fine_tune.trainable_from, train_head)
Writes: models/head.keras (the whole model, float32), reports/history/train_head.csv
Run:    python -m pipeline.train_head
"""

import shutil
from functools import partial

import keras

from pipeline import params, stage
from pipeline.data import prepared
from pipeline.network import classifier, frozen, precompute, stored, trained, training
from pipeline.registry import tracking


@stage.alone(stage.STATE / "train_head")
def main() -> None:
    recipe = params.load()
    data = prepared.digest()
    run = tracking.run_id(recipe, data)
    keras.utils.set_random_seed(recipe.seed)

    precompute.ensure(recipe)
    labels, val_labels = (prepared.read(split)[1]["label"].to_numpy() for split in ("train", "val"))
    with classifier.strategy().scope():
        whole = frozen.base_model(recipe)
        if recipe.features.weights != "none":  # the base's outputs are stored, so an epoch runs only the head
            what, tensor = classifier.head_input(whole)
            views, val = stored.read(what)
            learner = keras.Model(tensor, whole.output, name="head")
        else:
            views, val = stored.read("inputs")
            cut = classifier.boundary(whole, recipe.fine_tune.trainable_from)
            learner = classifier.trainable_part(whole, cut, classifier.precision())
            classifier.set_trainable(learner, classifier.base_layers(whole), batch_norm=True)
        training.compiled(learner, keras.optimizers.Adam(training.rate(recipe.train_head, len(labels))))

    key = stage.state_key(params.until(recipe, "train_head"), recipe.fine_tune.trainable_from, data)
    state = stage.STATE / "train_head" / key
    log = partial(tracking.log_epoch, run, "train_head")
    with tracking.system_metrics(run):
        history = training.fit(
            learner, (views, labels), (val, val_labels), recipe.train_head, seed=recipe.seed, state=state, on_epoch=log
        )
    classifier.copy_weights(learner, whole)  # the head shares its layers with the whole model; a trained base is a copy
    trained.save(whole, history, trained.HEAD)
    shutil.rmtree(state)


if __name__ == "__main__":
    stage.run(main)
