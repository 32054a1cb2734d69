"""Pretrains a backbone on cells: supervised on label sets, a head each; self-supervised (VICReg); or the sum of both.

Cells are seen side by side, T × T in one input, and each is pooled from its own part of the maps: a network that only
ever saw single crops meets borders everywhere, and its deep features mean little in a field of many cells.

A step takes `batch` labelled cells, mixed from all label sets in proportion to their images, and two views each of
`batch` cells without labels. An epoch is a pass over whichever are more.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.cells import HELD_OUT, TRAIN, Cells
from pipeline.network import classifier, jitter, training
from pipeline.network.backbones import BACKBONES
from pipeline.stage import Problem, progress

HIDDEN = 512  # of a head: a layer between base and softmax keeps the base general (Wang et al. 2022, arXiv 2112.00496)
EXPANDED = 1024
WARM_UP = 0.05  # of all steps
DECAY = 0.02
VALIDATED = 128  # cells at once


@dataclass(frozen=True)
class Plan:
    """What the weights depend on, beside the images."""

    backbone: str
    size: int
    tiles: int
    epochs: int
    batch: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Learner:
    """The trunk in the policy to train in; all that is trained on it; and the model of both, with the optimizer."""

    trunk: keras.Model  # uint8 [M, T·S, T·S, 3] to maps [M, h, w, D]
    heads: list[keras.Model]  # [n, D] to logits
    expander: keras.Model | None  # [n, D] to [n, EXPANDED]
    whole: keras.Model
    tiles: int


def learner(plan: Plan, cells: Cells, start: str | None) -> Learner:
    """Builds it; `start`: the file of weights to start from. Raises Problem if T × T cells cannot be told apart."""
    keras.utils.set_random_seed(plan.seed)
    network, side = BACKBONES[plan.backbone], plan.size * plan.tiles
    image = keras.Input((side, side, 3), dtype="uint8", name="image")
    variance = [deviation**2 for deviation in network.deviation]
    x = keras.layers.Normalization(mean=network.mean, variance=variance, name=classifier.NORMALISED)(image)
    try:
        base = keras.Model(image, network.base(input_tensor=x).output)
    except ValueError as error:
        raise Problem(f"{plan.backbone} cannot be built for {side} pixels ({error}); give a larger --size") from error
    if start:
        classifier.load_base_weights(base, start, plan.backbone)
    policy = classifier.precision()
    trunk = classifier.trainable_part(base, None, policy)
    steps = steps_an_epoch(plan, cells) * plan.epochs
    for layer in trunk.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(0.99, max(classifier.BN_MOMENTUM, 1 - 20 / steps))
    _, height, width, depth = trunk.output.shape
    if height % plan.tiles or width % plan.tiles:
        raise Problem(
            f"{plan.backbone}'s maps of {side} pixels are {height} × {width}, which {plan.tiles} × {plan.tiles} cells "
            "cannot share: give a --size that is a multiple of 32, or --tiles 1"
        )

    features = keras.Input((depth,))
    heads = [_layers(features, [HIDDEN], len(classes), f"head_{i}") for i, classes in enumerate(cells.sets.values())]
    free = len(cells.of(TRAIN, labelled=False))
    expander = _layers(features, [EXPANDED, EXPANDED], EXPANDED, "expander") if free else None
    pooled = keras.layers.GlobalAveragePooling2D()(trunk.output)
    tops = [*heads, *([expander] if expander else [])]
    whole = keras.Model(trunk.input, [top(pooled) for top in tops])
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=plan.learning_rate, warmup_steps=max(1, round(WARM_UP * steps))
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=DECAY)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    whole.optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if policy == "mixed_float16" else optimizer
    whole.optimizer.build(whole.trainable_variables)
    return Learner(trunk, heads, expander, whole, plan.tiles)


def steps_an_epoch(plan: Plan, cells: Cells) -> int:
    return -(-max(len(cells.of(TRAIN, labelled=each)) for each in (True, False)) // plan.batch)


def fit(
    made: Learner, plan: Plan, cells: Cells, state: Path, on_epoch: Callable[[int, dict[str, float]], None]
) -> list[dict[str, float]]:
    """Trains to the last epoch, going on after an interruption. Returns each epoch's row.

    Raises Problem if the loss is no number any more.
    """
    history = training.restore(made.whole, state)
    if history:
        print(f"going on after epoch {len(history)} of {plan.epochs}")
    step, look = _step(made, plan.size), _looking(made, plan.size)
    while (epoch := len(history)) < plan.epochs:
        started = time.monotonic()
        totals = tf.zeros(2)
        count = steps_an_epoch(plan, cells)
        sides = (cells.of(TRAIN, labelled=each) for each in (True, False))
        orders = [_order(rows, count * plan.batch, plan.seed, epoch) for rows in sides]
        for number in progress(range(count), f"epoch {epoch + 1}", unit="step"):
            known, free = (order[number * plan.batch : (number + 1) * plan.batch] for order in orders)
            seed = np.array([plan.seed, epoch * count + number], np.int32)
            totals += step(cells.pixels[known], cells.owner[known], cells.label[known], cells.pixels[free], seed)
        supervised, own = (totals / count).numpy().tolist()
        row: dict[str, float] = {"epoch": epoch, "loss": supervised + own}
        row |= {"loss_labelled": supervised} if made.heads else {}
        row |= {"loss_unlabelled": own} if made.expander else {}
        if not np.isfinite(row["loss"]):
            raise Problem(f"the loss became {row['loss']} in epoch {epoch + 1}: lower --learning-rate")
        row |= _validate(look, plan, cells)
        row["seconds"] = round(time.monotonic() - started, 2)
        history.append(row)
        training.save(made.whole, state, history)
        on_epoch(epoch, {name: value for name, value in row.items() if name != "epoch"})
        said = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if name not in ("epoch", "seconds"))
        print(f"epoch {epoch + 1}/{plan.epochs}: {said}, {row['seconds']:.0f} s", flush=True)
    return history


def _validate(look: Callable[[np.ndarray], tf.Tensor], plan: Plan, cells: Cells) -> dict[str, float]:
    """Accuracy and balanced accuracy of each label set's held-out cells."""
    found: dict[str, float] = {}
    rows, square = np.random.default_rng(plan.seed).permutation(cells.of(HELD_OUT, labelled=True)), plan.tiles**2
    if not len(rows):
        return found
    padded = np.resize(rows, -(-len(rows) // square) * square)  # whole inputs of T × T cells
    most = max(1, VALIDATED // square) * square
    parts = [look(cells.pixels[padded[start : start + most]]).numpy() for start in range(0, len(padded), most)]
    answers = np.concatenate(parts)[: len(rows)]
    for index, name in enumerate(cells.sets):
        mine = cells.owner[rows] == index
        label = cells.label[rows][mine]
        right = answers[mine, index] == label
        found[f"accuracy/{name}"] = float(right.mean())
        found[f"balanced_accuracy/{name}"] = float(np.mean([right[label == each].mean() for each in np.unique(label)]))
    return found


def _looking(made: Learner, size: int) -> Callable[[np.ndarray], tf.Tensor]:
    """From cells [n, H, H, 3], resized whole and seen side by side, to the class that each head sees in each."""

    @tf.function(jit_compile=False, reduce_retracing=True)
    def look(pixels: tf.Tensor) -> tf.Tensor:
        features = _features(made, jitter.plain(pixels, size), training=False)
        return tf.stack([tf.argmax(head(features, training=False), axis=1) for head in made.heads], axis=1)

    return look


def _step(made: Learner, size: int) -> Callable[..., tf.Tensor]:
    """One step of training: labelled cells, their sets and labels, cells without labels, and a seed to both losses."""
    optimizer = made.whole.optimizer
    variables = made.whole.trainable_variables

    @tf.function(jit_compile=False, reduce_retracing=True)
    def step(known: tf.Tensor, owner: tf.Tensor, label: tf.Tensor, free: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, 4)
        seen = [jitter.view(known, size, seeds[0])] if made.heads else []
        if made.expander:
            # The second views lie beside other cells than the first, so that neighbours do not give a cell away.
            other = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(free)[0]), seeds[3])
            seen += [jitter.view(free, size, seeds[1]), tf.gather(jitter.view(free, size, seeds[2]), other)]
        with tf.GradientTape() as tape:
            features = _features(made, tf.concat(seen, 0), training=True)
            supervised = own = tf.constant(0.0)
            if made.heads:
                mine = features[: tf.shape(known)[0]]
                supervised = _cross_entropy([head(mine, training=True) for head in made.heads], owner, label)
            if made.expander:
                both = made.expander(features[-2 * tf.shape(free)[0] :], training=True)
                first, second = tf.split(both, 2)
                own = vicreg(tf.gather(first, other), second)
            loss = optimizer.scale_loss(supervised + own)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return tf.stack([supervised, own])

    return step


def _features(made: Learner, images: tf.Tensor, training: bool) -> tf.Tensor:
    """Each cell's pooled features, float32 [n, D], of cells [n, S, S, 3] that are put side by side."""
    t, size, channels = made.tiles, images.shape[1], images.shape[3]
    rows = tf.reshape(images, (-1, t, t, size, size, channels))
    fields = tf.reshape(tf.transpose(rows, (0, 1, 3, 2, 4, 5)), (-1, t * size, t * size, channels))
    maps = tf.cast(made.trunk(fields, training=training), tf.float32)
    _, height, width, depth = maps.shape
    parts = tf.reshape(maps, (-1, t, height // t, t, width // t, depth))
    return tf.reshape(tf.reduce_mean(parts, axis=(2, 4)), (-1, depth))


def _cross_entropy(logits: list[tf.Tensor], owner: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """The mean over all cells, each by its own set's head."""
    total = tf.constant(0.0)
    for index, each in enumerate(logits):
        own = owner == index
        losses = keras.losses.sparse_categorical_crossentropy(tf.where(own, label, 0), each, from_logits=True)
        total += tf.reduce_sum(tf.where(own, losses, 0.0))
    return total / tf.cast(tf.shape(owner)[0], tf.float32)


def vicreg(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Variance, invariance and covariance of two views' embeddings [n, d], at 1, 1 and 1/25.

    Bardes, Ponce and LeCun 2022, "VICReg", arXiv 2105.04906, equations 1 to 6 with λ = μ = 25 and ν = 1, divided by 25.
    """
    count, width = tf.cast(tf.shape(first)[0], tf.float32), first.shape[1]
    invariance = tf.reduce_mean(tf.square(first - second))  # the paper's sum over d is a mean in its code
    variance = covariance = tf.constant(0.0)
    for each in (first, second):
        centred = each - tf.reduce_mean(each, axis=0)
        deviation = tf.sqrt(tf.reduce_sum(tf.square(centred), axis=0) / (count - 1) + 1e-4)
        variance += tf.reduce_mean(tf.nn.relu(1 - deviation)) / 2
        shared = tf.matmul(centred, centred, transpose_a=True) / (count - 1)
        covariance += (tf.reduce_sum(tf.square(shared)) - tf.reduce_sum(tf.square(tf.linalg.diag_part(shared)))) / width
    return invariance + variance + covariance / 25


def _layers(features: keras.KerasTensor, hidden: list[int], out: int, name: str) -> keras.Model:
    """A small network in float32: dense layers, each with batch normalisation and ReLU, and a linear one."""
    x: Any = features
    for number, units in enumerate(hidden):
        x = keras.layers.Dense(units, use_bias=False, name=f"{name}_dense_{number}")(x)
        x = keras.layers.BatchNormalization(momentum=classifier.BN_MOMENTUM, name=f"{name}_bn_{number}")(x)
        x = keras.layers.ReLU(name=f"{name}_relu_{number}")(x)
    return keras.Model(features, keras.layers.Dense(out, name=f"{name}_out")(x), name=name)


def _order(rows: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """`count` rows: every one once in an order drawn from seed and epoch, and again until there are enough."""
    rng = np.random.default_rng([seed, epoch])
    passes = -(-count // max(1, len(rows)))
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])[:count]
