"""The recipe as a Keras user writes it: `fit` from JPEG files, augmentation as layers of the model. No code of ours.

With --steps N it times N steps of each phase, after two that trace and warm up, and N validation steps; without, it
trains to the end and saves its answers to the test images.

Reads:  FOLDER/train/<class>/, FOLDER/val/<class>/, the weights
Writes: a line of JSON; with --predict, the predicted classes of images.npy [n, S, S, 3]
Run:    python benchmarks/plain.py FOLDER --weights FILE --steps 10
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


class Times(keras.callbacks.Callback):
    """When each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.train: list[float] = []
        self.val: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.train.append(time.monotonic())

    def on_test_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.val.append(time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, nargs=2, default=(15, 15), help="of each phase")
    parser.add_argument("--steps", type=int, help="time so many steps of each phase")
    parser.add_argument("--trainable-from", default="conv5_block1_1_relu", help="a layer's name, or all")
    parser.add_argument("--rates", type=float, nargs=2, default=(1e-3, 1e-5))
    parser.add_argument("--weight-decay", type=float, help="phase 2 by AdamW with this, its rate a cosine to zero")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--predict", nargs=2, metavar=("IMAGES", "OUT"))
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    start = time.monotonic()

    def images(split: str, shuffle: bool) -> tf.data.Dataset:
        return keras.utils.image_dataset_from_directory(
            f"{options.folder}/{split}",
            image_size=(options.size, options.size),
            batch_size=32,
            shuffle=shuffle,
            seed=options.seed,
            verbose=False,
        )

    train, val = images("train", True), images("val", False)
    counts = [len(list((Path(options.folder) / "train" / name).iterdir())) for name in train.class_names]
    balanced = {label: sum(counts) / (len(counts) * count) for label, count in enumerate(counts)}  # as the recipe's
    model, base = build(options.size, options.weights)
    report = {}
    for phase, rate, epochs in zip((1, 2), options.rates, options.epochs, strict=True):
        if phase == 2:
            base.trainable = True
            names = [layer.name for layer in base.layers]
            for layer in base.layers:
                is_norm = isinstance(layer, keras.layers.BatchNormalization)
                if options.trainable_from != "all":
                    layer.trainable = not is_norm and names.index(layer.name) >= names.index(options.trainable_from)
                elif is_norm:
                    layer.momentum = 0.9  # as the recipe's: with 0.99 the averages lag behind for hundreds of steps
        optimizer = keras.optimizers.Adam(rate)
        if phase == 2 and options.weight_decay:
            cosine = keras.optimizers.schedules.CosineDecay(rate, len(train) * epochs)
            optimizer = keras.optimizers.AdamW(cosine, weight_decay=options.weight_decay)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        times = Times()
        if options.steps:
            begun = time.monotonic()
            model.fit(
                train.take(options.steps + 2),
                validation_data=val.take(options.steps + 1),
                epochs=1,
                class_weight=balanced,
                verbose=0,
                callbacks=[times],
            )
            report[f"phase {phase}"] = {
                "step": (times.train[-1] - times.train[1]) / options.steps,
                "val_step": (times.val[-1] - times.val[0]) / (len(times.val) - 1) if len(times.val) > 1 else 0.0,
                "start": times.train[1] - begun,  # tracing and two steps
            }
        else:
            best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
            model.fit(
                train,
                validation_data=val,
                epochs=epochs,
                class_weight=balanced,
                verbose=2,
                callbacks=[best],
            )
    if options.predict:
        answers = model.predict(np.load(options.predict[0]), batch_size=32, verbose=0)
        np.save(options.predict[1], answers.argmax(axis=1))
    print(json.dumps(report | {"seconds": time.monotonic() - start}))


def build(size: int, weights: str) -> tuple[keras.Model, keras.Model]:
    """The model and its base, frozen; the head and the augmentation are the recipe's."""
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(size, size, 3))
    base.load_weights(weights)
    base.trainable = False
    x = inputs = keras.Input((size, size, 3))
    for layer in (
        keras.layers.RandomFlip(),
        keras.layers.RandomRotation(20 / 360, fill_mode="reflect"),
        keras.layers.RandomZoom(0.10, fill_mode="reflect"),
        keras.layers.RandomBrightness(0.15, value_range=(0, 255)),
    ):
        x = layer(x)
    x = base(keras.applications.resnet50.preprocess_input(x))  # frozen layers keep batch normalisation's averages
    for layer in (
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(256),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(4, activation="softmax"),
    ):
        x = layer(x)
    return keras.Model(inputs, x), base


if __name__ == "__main__":
    main()
