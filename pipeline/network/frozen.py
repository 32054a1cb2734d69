"""What every view goes through once: the frozen part of the network, in the fastest runtime that agrees with Keras.

On a processor that is onnxruntime, which folds batch normalisation into the convolutions; with a GPU, TensorFlow.
"""

import keras
import tensorflow as tf

from leukdetect.runtime import cpus
from pipeline.network import classifier, to_onnx, views
from pipeline.network.views import Forward
from pipeline.params import Params


def base_model(recipe: Params) -> keras.Model:
    """The whole float32 model with `features.weights` under a random head. Raises Problem for wrong weights."""
    whole = classifier.build(recipe.prepare.image_size, len(recipe.classes), recipe.model.backbone)
    if recipe.features.weights != "none":
        classifier.load_base_weights(whole, recipe.features.weights, recipe.model.backbone)
    return whole


def forward(recipe: Params) -> Forward:
    """From images uint8 [n, S, S, 3] to what the frozen part makes of them, by name.

    Returns:
        A function whose results are `inputs`, what the trainable part reads, where something is frozen; and, of a
        pretrained base, `pooled`, float32 [n, D]: the whole base's answer, all that the head is trained on.
    """
    whole, outputs = _stored_tensors(recipe)
    return tensorflow(whole, outputs) if tf.config.list_logical_devices("GPU") else onnx(whole, outputs)


def graph(recipe: Params) -> bytes:
    """What `forward` runs, as an ONNX file for `views.session`."""
    return _graph(*_stored_tensors(recipe))


def tensorflow(whole: keras.Model, outputs: dict[str, keras.KerasTensor]) -> Forward:
    """A function from images to some of a model's tensors, by TensorFlow."""
    graph = tf.function(keras.Model(whole.input, outputs), reduce_retracing=True)
    return lambda images: {name: tensor.numpy() for name, tensor in graph(images, training=False).items()}


def onnx(whole: keras.Model, outputs: dict[str, keras.KerasTensor]) -> Forward:
    """The same by onnxruntime, on as many threads as this process may use."""
    return views.session(_graph(whole, outputs), cpus())


def _stored_tensors(recipe: Params) -> tuple[keras.Model, dict[str, keras.KerasTensor]]:
    whole = base_model(recipe)
    cut = classifier.boundary(whole, recipe.fine_tune.trainable_from)
    outputs = {}
    if cut is not None:
        outputs["inputs"] = classifier.frozen_part(whole, cut).output
    if recipe.features.weights != "none":
        outputs["pooled"] = whole.get_layer(classifier.POOLED).output
    return whole, outputs


def _graph(whole: keras.Model, outputs: dict[str, keras.KerasTensor]) -> bytes:
    trunk = keras.Model(whole.get_layer(classifier.NORMALISED).output, outputs)

    def function(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return trunk(classifier.normalised(whole, image), training=False)

    content: bytes = to_onnx.to_onnx(function, whole.input.shape[1], whole.weights).SerializeToString()
    return content
