"""Pretrains a backbone on cells: supervised on label sets, a head each; self-supervised (VICReg); or the sum of both.

A step takes `batch` labelled cells, mixed from all label sets in proportion to their images, and two views each of
`batch` cells without labels. An epoch is a pass over whichever are more.

Cells lie side by side, T × T in one input, and each is pooled from its own part of the maps: a network that only ever
saw single crops meets the padding everywhere, and its deep features mean less in a field of many cells.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import recall_score

from pipeline.data.cells import HELD_OUT, TRAIN, Cells
from pipeline.network import classifier, jitter, training
from pipeline.stage import Problem, progress

HIDDEN = 512  # of a head: a layer between base and softmax keeps the base general (Wang et al. 2022, arXiv 2112.00496)
EXPANDED, EMBEDDED = 1024, 256  # of VICReg; a batch of n cells cannot keep many more than n features uncorrelated
WARM_UP, DECAY = 0.05, 0.02  # share of all steps; AdamW's
VALIDATED = 128  # cells at once


@dataclass(frozen=True)
class Plan:
    """What the weights depend on, beside the images and what they start from."""

    backbone: str
    size: int
    tiles: int
    epochs: int
    batch: int
    learning_rate: float
    colour: float
    seed: int


@dataclass(frozen=True)
class Learner:
    """The parts, in the policy to train in, and the model of them all, which has the optimizer."""

    trunk: keras.Model  # uint8 [M, T·S, T·S, 3] to maps [M, h, w, D]
    heads: list[keras.Model]  # [n, D] to logits, one a label set
    expander: keras.Model | None  # [n, D] to [n, EMBEDDED]
    whole: keras.Model


def learner(plan: Plan, cells: Cells, start: str | None) -> Learner:
    """Builds it, from random weights or those of the file `start`. Raises Problem where T × T cells do not fit."""
    keras.utils.set_random_seed(plan.seed)
    side = plan.size * plan.tiles
    try:
        base = classifier.headless(side, plan.backbone)
    except ValueError as error:
        raise Problem(f"{plan.backbone} cannot be built for {side} pixels ({error}); give a larger --size") from error
    if start:
        classifier.load_base_weights(base, start, plan.backbone)
    trunk = classifier.trainable_part(base, None, classifier.precision())
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

    heads = [_layers(depth, [HIDDEN], len(classes), f"head_{i}") for i, classes in enumerate(cells.sets.values())]
    free = len(cells.of(TRAIN, labelled=False))
    expander = _layers(depth, [EXPANDED, EXPANDED], EMBEDDED, "expander") if free else None
    pooled = keras.layers.GlobalAveragePooling2D()(trunk.output)
    whole = keras.Model(trunk.input, [top(pooled) for top in (*heads, *([expander] if expander else []))])
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=plan.learning_rate, warmup_steps=max(1, round(WARM_UP * steps))
    )
    # VICReg's gradients leap at first, so they are clipped.
    optimizer = keras.optimizers.AdamW(rate, weight_decay=DECAY, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    whole.optimizer = training.scaling(trunk, optimizer)
    whole.optimizer.build(whole.trainable_variables)
    return Learner(trunk, heads, expander, whole)


def steps_an_epoch(plan: Plan, cells: Cells) -> int:
    return -(-max(len(cells.of(TRAIN, labelled=each)) for each in (True, False)) // plan.batch)


def fit(
    made: Learner, plan: Plan, cells: Cells, state: Path, on_epoch: Callable[[int, dict[str, float]], None]
) -> list[dict[str, float]]:
    """Trains to the last epoch, going on from `state` after an interruption. Returns a row an epoch.

    Raises Problem if the loss is no number any more.
    """
    history = training.restore(made.whole, state)
    if history:
        print(f"going on after epoch {len(history)} of {plan.epochs}")
    step, look, count = _step(made, plan), _look(made, plan), steps_an_epoch(plan, cells)
    while (epoch := len(history)) < plan.epochs:
        started, losses = time.monotonic(), np.zeros(2)
        sides = (cells.of(TRAIN, labelled=each) for each in (True, False))
        orders = [_order(rows, count * plan.batch, plan.seed, epoch) for rows in sides]
        for number in progress(range(count), f"epoch {epoch + 1}", unit="step"):
            known, free = (order[number * plan.batch : (number + 1) * plan.batch] for order in orders)
            seed = np.array([plan.seed, epoch * count + number], np.int32)
            losses += step(cells.pixels[known], cells.owner[known], cells.label[known], cells.pixels[free], seed)
        losses /= count
        if not np.isfinite(losses).all():
            raise Problem(f"the loss became {losses.sum()} in epoch {epoch + 1}: lower --learning-rate")
        row = {"loss/labelled": float(losses[0])} if made.heads else {}
        row |= {"loss/unlabelled": float(losses[1])} if made.expander else {}
        row |= _validate(look, plan, cells) | {"seconds": round(time.monotonic() - started, 2)}
        history.append(row)
        training.save(made.whole, state, history)
        on_epoch(epoch, row)
        said = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "seconds")
        print(f"epoch {epoch + 1}/{plan.epochs}: {said}, {row['seconds']:.0f} s", flush=True)
    return history


def _step(made: Learner, plan: Plan) -> Callable[..., tf.Tensor]:
    """One step of training: labelled cells, their sets and labels, cells without labels, and a seed to both losses."""
    optimizer, variables = made.whole.optimizer, made.whole.trainable_variables

    def view(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return jitter.view(pixels, plan.size, plan.colour, seed)

    @tf.function(autograph=False, jit_compile=False)
    def step(known: tf.Tensor, owner: tf.Tensor, label: tf.Tensor, free: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, 4)
        seen = [view(known, seeds[0])] if made.heads else []
        if made.expander:
            # The second views lie beside other cells than the first, so that neighbours do not give a cell away.
            other = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(free)[0]), seeds[3])
            seen += [view(free, seeds[1]), tf.gather(view(free, seeds[2]), other)]
        with tf.GradientTape() as tape:
            features = _features(made, tf.concat(seen, 0), plan.tiles, training=True)
            supervised = own = tf.constant(0.0)
            if made.heads:
                mine = features[: tf.shape(known)[0]]
                supervised = _cross_entropy([head(mine, training=True) for head in made.heads], owner, label)
            if made.expander:
                first, second = tf.split(made.expander(features[-2 * tf.shape(free)[0] :], training=True), 2)
                own = vicreg(tf.gather(first, other), second)
            loss = optimizer.scale_loss(supervised + own)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return tf.stack([supervised, own])

    return step


def _look(made: Learner, plan: Plan) -> Callable[[np.ndarray], tf.Tensor]:
    """From cells [n, H, H, 3], resized whole, to the class that each head sees in each: [n, heads]."""

    @tf.function(autograph=False, jit_compile=False)
    def look(pixels: tf.Tensor) -> tf.Tensor:
        features = _features(made, jitter.plain(pixels, plan.size), plan.tiles, training=False)
        return tf.stack([tf.argmax(head(features, training=False), axis=1) for head in made.heads], axis=1)

    return look


def _validate(look: Callable[[np.ndarray], tf.Tensor], plan: Plan, cells: Cells) -> dict[str, float]:
    """Accuracy and balanced accuracy of each label set's held-out cells."""
    rows, square = np.random.default_rng(plan.seed).permutation(cells.of(HELD_OUT, labelled=True)), plan.tiles**2
    if not len(rows):
        return {}
    padded = np.resize(rows, -(-len(rows) // square) * square)  # whole inputs of T × T cells
    most = max(1, VALIDATED // square) * square
    parts = [look(cells.pixels[padded[start : start + most]]).numpy() for start in range(0, len(padded), most)]
    answers, label, found = np.concatenate(parts)[: len(rows)], cells.label[rows], {}
    for index, name in enumerate(cells.sets):
        mine = cells.owner[rows] == index
        found[f"accuracy/{name}"] = float((answers[mine, index] == label[mine]).mean())
        found[f"balanced_accuracy/{name}"] = float(recall_score(label[mine], answers[mine, index], average="macro"))
    return found


def _features(made: Learner, images: tf.Tensor, t: int, training: bool) -> tf.Tensor:
    """Each cell's pooled features, float32 [n, D], of cells [n, S, S, 3] that are put side by side, T × T."""
    size, channels = images.shape[1], images.shape[3]
    rows = tf.transpose(tf.reshape(images, (-1, t, t, size, size, channels)), (0, 1, 3, 2, 4, 5))
    maps = made.trunk(tf.reshape(rows, (-1, t * size, t * size, channels)), training=training)
    _, height, width, depth = maps.shape
    parts = tf.reshape(tf.cast(maps, tf.float32), (-1, t, height // t, t, width // t, depth))
    return tf.reshape(tf.reduce_mean(parts, axis=(2, 4)), (-1, depth))


def _cross_entropy(logits: list[tf.Tensor], owner: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """The mean over all cells, each by its own set's head."""
    losses = tf.zeros_like(owner, tf.float32)
    for index, each in enumerate(logits):
        own = owner == index
        found = keras.losses.sparse_categorical_crossentropy(tf.where(own, label, 0), each, from_logits=True)
        losses = tf.where(own, found, losses)
    return tf.reduce_mean(losses)


def vicreg(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Invariance, variance and covariance of two views' embeddings [n, d], as 1 : 1 : 1/25.

    Bardes, Ponce and LeCun 2022, "VICReg", arXiv 2105.04906: equations 1 to 6 with λ = μ = 25 and ν = 1, all divided by
    25; the squared distance is a mean over d and the variance one over both views, as in the authors' code.
    """
    count, width = tf.cast(tf.shape(first)[0], tf.float32), first.shape[1]
    loss = tf.reduce_mean(tf.square(first - second))
    for each in (first, second):
        centred = each - tf.reduce_mean(each, axis=0)
        shared = tf.matmul(centred, centred, transpose_a=True) / (count - 1)
        variances = tf.linalg.diag_part(shared)
        loss += tf.reduce_mean(tf.nn.relu(1 - tf.sqrt(variances + 1e-4))) / 2
        loss += (tf.reduce_sum(tf.square(shared)) - tf.reduce_sum(tf.square(variances))) / width / 25
    return loss


def _layers(width: int, hidden: list[int], out: int, name: str) -> keras.Model:
    """A small network in float32: dense layers, each with batch normalisation and ReLU, then a linear one."""
    x = features = keras.Input((width,))
    for units in hidden:
        x = keras.layers.Dense(units, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=classifier.BN_MOMENTUM)(x))
    return keras.Model(features, keras.layers.Dense(out)(x), name=name)


def _order(rows: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """`count` rows: every one once in an order drawn from seed and epoch, and again until there are enough."""
    rng = np.random.default_rng([seed, epoch])
    return np.concatenate([rng.permutation(rows) for _ in range(-(-count // max(1, len(rows))))])[:count]
