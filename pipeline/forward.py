"""What every view goes through once: the frozen part of the network, in the fastest runtime that agrees with Keras.

On a processor that is onnxruntime, which folds batch normalisation into the convolutions; with a GPU, TensorFlow.
"""

import os
from collections.abc import Callable

import keras
import numpy as np
import onnxruntime
import tensorflow as tf

from pipeline import convert, model
from pipeline.params import Params
from pipeline.stage import Problem

Forward = Callable[[np.ndarray], dict[str, np.ndarray]]


def base_model(recipe: Params) -> keras.Model:
    """The whole float32 model with `features.weights` under a random head. Raises Problem for wrong weights."""
    whole = model.build(recipe.prepare.image_size, len(recipe.classes), recipe.model.backbone)
    if recipe.features.weights != "none":
        model.load_base_weights(whole, recipe.features.weights, recipe.model.backbone)
    return whole


def frozen(recipe: Params) -> Forward:
    """From images uint8 [n, S, S, 3] to what is stored of them.

    Returns:
        A function whose results are `inputs`, what the trainable part reads: float16 activations where the frozen
        part ends, or the images themselves where nothing is frozen; and, of a pretrained base, `pooled`, float32
        [n, D]: the whole base's answer, all that the head is trained on.
    """
    whole = base_model(recipe)
    cut = model.boundary(whole, recipe.fine_tune.trainable_from)
    outputs = {}
    if cut is not None:
        outputs["inputs"] = model.frozen_part(whole, cut).output
    if recipe.features.weights != "none":
        outputs["pooled"] = whole.get_layer(model.POOLED).output
    run = tensorflow(whole, outputs) if tf.config.list_logical_devices("GPU") else onnx(whole, outputs)

    def forward(images: np.ndarray) -> dict[str, np.ndarray]:
        found = run(images)
        if cut is None:
            return {"inputs": images, **found}
        if found["inputs"].max() > np.finfo(np.float16).max:
            raise Problem("activations exceed float16's range: these weights do not fit this network's normalisation")
        return {**found, "inputs": found["inputs"].astype(np.float16)}

    return forward


def tensorflow(whole: keras.Model, outputs: dict[str, keras.KerasTensor]) -> Forward:
    """A function from images to some of a model's tensors, by TensorFlow."""
    graph = tf.function(keras.Model(whole.input, outputs), reduce_retracing=True)
    return lambda images: {name: tensor.numpy() for name, tensor in graph(images, training=False).items()}


def onnx(whole: keras.Model, outputs: dict[str, keras.KerasTensor]) -> Forward:
    """The same by onnxruntime, on as many threads as this process may use."""
    normalise = whole.get_layer(model.NORMALISED)
    mean, deviation = np.array(normalise.mean).ravel(), np.sqrt(np.array(normalise.variance)).ravel()
    trunk = keras.Model(normalise.output, outputs)

    def function(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return trunk((tf.cast(image, tf.float32) - mean) / deviation, training=False)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    # A thread that waits gives its processor to the augmentation of the next batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        convert.to_onnx(function, whole.input.shape[1], whole.weights).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    names = list(outputs)
    return lambda images: dict(zip(names, session.run(names, {"image": images}), strict=True))
