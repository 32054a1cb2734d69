"""The network: a backbone of `keras.applications` with the paper's head, and the parts of it that training uses.

Keras loads the whole model without this code: it takes uint8 RGB, and normalises inside. `keras.applications` swaps the
channels to BGR before a ResNet-50 or a VGG16; here the first convolution's kernel is swapped instead when weights are
loaded, which is the same arithmetic and keeps the graph free of that step.
"""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from leukdetect.runtime import processor
from pipeline.network.backbones import BACKBONES
from pipeline.network.pooling import ATTENTION, MOMENTS, POOLING_FLOAT32, Moments, attended
from pipeline.stage import Problem

NORMALISED = "normalise"
POOLED = "avg_pool"
# 0..255, softmaxes with their scores, and sums over positions, which half precision would round to three digits.
FLOAT32 = (NORMALISED, *POOLING_FLOAT32, "probabilities")
BN_MOMENTUM = 0.9  # Keras's 0.99 would need more steps than there are for the averages to follow


def strategy() -> tf.distribute.Strategy:
    """Mirrors the model over all GPUs if there are several."""
    several = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def precision() -> str:
    """The Keras policy to train with on this machine; weights stay in float32.

    Half precision if the hardware multiplies in it: a GPU; AMX (Intel, from 2023), where bfloat16 trains twice as fast
    as float32; AVX-512 BF16 (AMD, from 2022), where it takes two thirds to three quarters of the time.
    """
    if tf.config.list_logical_devices("GPU"):
        return "mixed_float16"
    flags = processor().get("flags", "").split()
    return "mixed_bfloat16" if {"amx_bf16", "avx512_bf16"} & set(flags) else "float32"


def build(
    size: int,
    classes: int,
    backbone: str = "ResNet50",
    pooling: str = "average",
    last_layer: str | int | None = None,
    head: str = "paper",
) -> keras.Model:
    """The whole model, randomly initialised, in float32: uint8 [N, size, size, 3] to probabilities [N, classes].

    The paper's head: GAP (or as said), Dense 256, BN, ReLU, Dropout 0.4, Dense 128, ReLU, Dropout 0.3, softmax. The
    base ends at `last_layer`: a name, or about how many pixels a position of its maps spans; None: all of it.

    Raises Problem if the base has no `last_layer`, or it lies before the layer that unlikeness is measured on.
    """
    base = headless(size, backbone)
    maps = _last(base, last_layer, BACKBONES[backbone].low_level)
    if pooling == "attention":
        x = attended(maps)
    elif pooling == "moments":
        x = Moments(name=MOMENTS, dtype="float32")(maps)
    else:
        x = keras.layers.GlobalAveragePooling2D(name=POOLED, dtype="float32")(maps)
    if head == "linear":
        x = keras.layers.BatchNormalization(momentum=BN_MOMENTUM, name="head_bn")(x)
        x = keras.layers.Dense(classes, name="logits", kernel_initializer="zeros")(x)
    else:
        x = keras.layers.Dense(256, name="head_dense_1")(x)
        x = keras.layers.BatchNormalization(momentum=BN_MOMENTUM, name="head_bn")(x)
        x = keras.layers.ReLU(name="head_relu_1")(x)
        x = keras.layers.Dropout(0.4, name="head_dropout_1")(x)
        x = keras.layers.Dense(128, name="head_dense_2")(x)
        x = keras.layers.ReLU(name="head_relu_2")(x)
        x = keras.layers.Dropout(0.3, name="head_dropout_2")(x)
        x = keras.layers.Dense(classes, name="logits")(x)
    return keras.Model(base.input, keras.layers.Softmax(name="probabilities")(x), name="leukdetect")


def headless(size: int, backbone: str) -> keras.Model:
    """The backbone, randomly initialised, without its top: uint8 [N, size, size, 3] to its last maps [N, h, w, D]."""
    network = BACKBONES[backbone]
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    variance = [deviation**2 for deviation in network.deviation]
    x = keras.layers.Normalization(mean=network.mean, variance=variance, name=NORMALISED)(image)
    return keras.Model(image, network.base(input_tensor=x).output, name="headless")


def _last(base: keras.Model, last: str | int | None, low_level: str) -> keras.KerasTensor:
    if last is None:
        return base.output
    names = [layer.name for layer in base.layers]
    first = names.index(low_level)
    if isinstance(last, int):
        narrow = [base.layers[i].output for i in reversed(_narrow(base.layers)) if i >= first]
        return min(narrow, key=lambda maps: abs(maps.shape[1] - base.input.shape[1] / last))
    if last not in names[first:]:
        raise Problem(
            f"model.last_layer: the base has no layer {last!r} from {low_level} on, where unlikeness is measured; give "
            f"null for all of it, 8, 16, or a layer such as {names[(first + len(names)) // 2]}"
        )
    return base.get_layer(last).output


def _narrow(layers: list[keras.layers.Layer]) -> list[int]:
    """The places of the layers that every path passes through, of all in the order of the graph."""
    place = {id(layer.output): i for i, layer in enumerate(layers)}
    oldest_read = [min((place[id(t)] for t in keras.tree.flatten(layer.input)), default=0) for layer in layers]
    return [i for i in range(len(layers)) if min(oldest_read[i + 1 :], default=i) >= i]


def load_base_weights(model: keras.Model, weights: str, backbone: str = "ResNet50") -> None:
    """Loads a backbone's pretrained weights (no top) into the model.

    `weights` is `imagenet`, which Keras downloads once, or the path of a file that was saved for
    `keras.applications.<backbone>(include_top=False)` and its own `preprocess_input`.

    Raises Problem if the download fails, there is no such file, or it is of another network.
    """
    network, shape = BACKBONES[backbone], (224, 224, 3)
    if weights == "imagenet":
        try:
            base = network.base(weights="imagenet", input_shape=shape)
        except Exception as error:  # Keras raises a bare Exception where the download fails
            raise Problem(
                f"the ImageNet weights could not be downloaded ({error}). Check the network or the proxy, or fetch "
                f"the {backbone} no-top file elsewhere and set features.weights in params.yaml to its path."
            ) from error
    else:
        base = network.base(input_shape=shape)
        if not Path(weights).is_file():
            raise Problem(f"features.weights: there is no file {weights}; give a path, imagenet or none")
        try:
            with warnings.catch_warnings():  # Keras warns of each missing part, then raises
                warnings.simplefilter("ignore")
                base.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise Problem(
                f"features.weights: {weights} does not fit {backbone} without its top ({reason}). It must be what "
                f"keras.applications.{backbone}(include_top=False).save_weights() writes."
            ) from error
    copy_weights(base, model, network.bgr_kernel)


def save_base_weights(model: keras.Model, path: Path, backbone: str) -> None:
    """Writes a model's backbone as `load_base_weights` reads it: `keras.applications`' own, without top."""
    network = BACKBONES[backbone]
    base = network.base(input_shape=(224, 224, 3))
    copy_weights(model, base, network.bgr_kernel)
    base.save_weights(path)


def normalised(model: keras.Model, image: tf.Tensor) -> tf.Tensor:
    """The base's input from uint8 [N, S, S, 3]. The constants of the Keras layer would become inputs in ONNX."""
    layer = model.get_layer(NORMALISED)
    mean, deviation = np.array(layer.mean).ravel(), np.sqrt(np.array(layer.variance)).ravel()
    centred = tf.cast(image, tf.float32) - mean
    return centred / deviation if (deviation != 1).any() else centred


def feature_maps(model: keras.Model) -> keras.KerasTensor:
    """The base's last maps [N, h, w, D], which pooling and Grad-CAM read."""
    return model.get_layer(base_layers(model)[-1]).output


def embedding(model: keras.Model) -> keras.KerasTensor:
    """The pooled maps [N, D]."""
    return model.get_layer("head_bn" if linear(model) else "head_dense_1").input


def linear(model: keras.Model) -> bool:
    """Whether the head is batch normalisation and one layer, so that a logit is a weighted sum of the embedding."""
    return "head_dense_1" not in {layer.name for layer in model.layers}


def attention(model: keras.Model) -> keras.KerasTensor | None:
    """The weights of the positions [N, h·w, 1], which sum to 1; None: the maps are averaged."""
    return next((layer.output for layer in model.layers if layer.name == ATTENTION), None)


def moments(model: keras.Model) -> bool:
    """Whether the embedding holds deviations beside the means."""
    return MOMENTS in {layer.name for layer in model.layers}


def head_input(model: keras.Model) -> tuple[Literal["pooled", "maps"], keras.KerasTensor]:
    """The first tensor that the base alone decides, so that a head on a frozen base can be trained from it: its name in
    `data/features`, and itself. Averages are all that such a head needs; attention is trained, and needs the maps."""
    return ("pooled", embedding(model)) if attention(model) is None else ("maps", feature_maps(model))


def low_level(model: keras.Model) -> keras.KerasTensor:
    """The features that unlikeness is measured on, [N, L]: `Backbone.low_level`'s maps, pooled, at length 1."""
    names = {layer.name for layer in model.layers}
    layer = next(network.low_level for network in BACKBONES.values() if network.low_level in names)
    pooled = keras.layers.GlobalAveragePooling2D()(model.get_layer(layer).output)
    return keras.layers.UnitNormalization()(pooled)


def boundary(model: keras.Model, trainable_from: str) -> str | None:
    """The last layer before `trainable_from` that every path passes through, so the network can be cut there.

    Returns its name; None if every layer trains. Raises Problem if the base has no layer `trainable_from`.
    """
    if trainable_from == "all":
        return None
    names = base_layers(model)
    if trainable_from not in names:
        raise Problem(
            f"fine_tune.trainable_from: the base has no layer {trainable_from!r}; give all, or the name of one of its "
            f"{len(names)} layers, such as {names[-30:][0]}"
        )
    layers = model.layers  # in the order of the graph
    first, end = (next(i for i, layer in enumerate(layers) if layer.name == n) for n in (names[0], trainable_from))
    for i in reversed(_narrow(layers)):
        if first <= i < end and any(layer.weights for layer in layers[first : i + 1]):
            return str(layers[i].name)
    raise Problem(f"fine_tune.trainable_from: nothing is left to freeze below {trainable_from}; give all")


def base_layers(model: keras.Model, trainable_from: str = "all") -> list[str]:
    """Names of the base's layers in the order of the graph: those that `fine_tune.trainable_from` lets train."""
    names = [layer.name for layer in model.layers]
    first = names.index(NORMALISED) + 1 if trainable_from == "all" else names.index(trainable_from)
    end = next(i for i, name in enumerate(names) if name == POOLED or name.startswith("head_"))
    return names[first:end]


def halves(model: keras.Model, cut: str) -> bool:
    """Whether only 1×1 convolutions of stride 2 read `cut`, so that three quarters of it are never read.

    Then keeping every second row and column, and convolving with stride 1, gives the same numbers.
    """
    readers = _readers(model, cut)
    return all(isinstance(r, keras.layers.Conv2D) and r.kernel_size == (1, 1) and r.strides == (2, 2) for r in readers)


def frozen_part(model: keras.Model, cut: str) -> keras.Model:
    """From the image to the activations at `cut`; every second row and column of them if `halves`."""
    out = model.get_layer(cut).output
    return keras.Model(model.input, out[:, ::2, ::2, :] if halves(model, cut) else out, name="frozen")


def trainable_part(model: keras.Model, cut: str | None, precision: str = "float32") -> keras.Model:
    """A copy, with the same weights, of the layers after `cut` (None: of all), in a Keras policy.

    `copy_weights` copies the trained weights back to the float32 model.
    """
    if cut is None:
        x = keras.Input(model.input.shape[1:], dtype="uint8", name="image")
    else:
        x = keras.Input(frozen_part(model, cut).output.shape[1:], name="activations")
    first = model.get_layer(cut or "image")
    unstrided = _readers(model, cut) if cut and halves(model, cut) else []

    made = {id(first.output): x}
    for layer in model.layers[model.layers.index(first) + 1 :]:
        config = layer.get_config()
        if layer.name not in FLOAT32:
            config["dtype"] = precision
        if layer in unstrided:
            config["strides"] = (1, 1)
        if isinstance(layer, keras.layers.BatchNormalization):
            config["momentum"] = BN_MOMENTUM
        copy = type(layer).from_config(config)
        inputs = [made[id(tensor)] for tensor in keras.tree.flatten(layer.input)]
        made[id(layer.output)] = copy(inputs if len(inputs) > 1 else inputs[0])
    part = keras.Model(x, made[id(model.output)], name="trainable")
    copy_weights(model, part)
    return part


def copy_weights(source: keras.Model, target: keras.Model, turned: str | None = None) -> None:
    """Copies the weights of every layer that both models have, by name; `turned`: whose kernel is for BGR in one."""
    known = {layer.name for layer in source.layers}
    for layer in target.layers:
        if layer.weights and layer.name in known:
            values = source.get_layer(layer.name).get_weights()
            if layer.name == turned:
                values[0] = values[0][:, :, ::-1, :]
            layer.set_weights(values)


def set_trainable(part: keras.Model, layers: Collection[str], batch_norm: bool) -> None:
    """Makes the base's `layers` and the head trainable; without `batch_norm`, batch normalisation stays frozen."""
    for layer in part.layers:
        is_head = layer.name.startswith(("head_", "logits"))
        frozen_bn = isinstance(layer, keras.layers.BatchNormalization) and not batch_norm
        layer.trainable = is_head or (layer.name in layers and not frozen_bn)


def _readers(model: keras.Model, name: str) -> list[keras.layers.Layer]:
    output = model.get_layer(name).output
    return [layer for layer in model.layers if any(t is output for t in keras.tree.flatten(layer.input))]
