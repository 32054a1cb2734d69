"""The frozen part of the network, which every view passes once, in the fastest runtime that agrees with Keras.

On a CPU that is onnxruntime, which folds batch normalisation into the convolutions; on a GPU, TensorFlow.
"""

import keras
import tensorflow as tf

from pipeline.network import classifier, to_onnx, views
from pipeline.network.views import Forward
from pipeline.params import Params


def base_model(recipe: Params) -> keras.Model:
    """The whole float32 model with `features.weights` under a random head. Raises Problem for wrong weights."""
    model = recipe.model
    whole = classifier.build(
        recipe.prepare.image_size, len(recipe.classes), model.backbone, model.pooling, model.last_layer, model.head
    )
    if recipe.features.weights != "none":
        classifier.load_base_weights(whole, recipe.features.weights, model.backbone)
    return whole


def forward(recipe: Params) -> Forward:
    """A function from images, uint8 [n, S, S, 3], to the outputs of `stored_tensors`; for several threads at once."""
    whole, outputs = stored_tensors(recipe)
    if tf.config.list_logical_devices("GPU"):
        return tensorflow(whole, outputs)
    return views.session(graph(whole, outputs), threads=1)


def stored_tensors(recipe: Params) -> tuple[keras.Model, dict[str, keras.KerasTensor]]:
    """The whole model, and which of its tensors are stored.

    `inputs`, where something is frozen: the input of the trainable part. Of a pretrained base, what the head is trained
    on: `pooled` [n, D], or `maps` [n, h, w, D] where the head has attention to train.
    """
    whole = base_model(recipe)
    cut = classifier.boundary(whole, recipe.fine_tune.trainable_from)
    outputs = {}
    if cut is not None and recipe.fine_tune.epochs:
        outputs["inputs"] = classifier.frozen_part(whole, cut).output
    if recipe.features.weights != "none":
        what, tensor = classifier.head_input(whole)
        outputs[what] = tensor
    return whole, outputs


def tensorflow(whole: keras.Model, outputs: dict[str, keras.KerasTensor]) -> Forward:
    """A function from images to some of a model's tensors, by TensorFlow."""
    graph = tf.function(keras.Model(whole.input, outputs), reduce_retracing=True)
    return lambda images: {name: tensor.numpy() for name, tensor in graph(images, training=False).items()}


def graph(whole: keras.Model, outputs: dict[str, keras.KerasTensor]) -> bytes:
    """The same as an ONNX file, for `views.session`."""
    trunk = keras.Model(whole.get_layer(classifier.NORMALISED).output, outputs)

    def function(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return trunk(classifier.normalised(whole, image), training=False)

    content: bytes = to_onnx.to_onnx(function, whole.input.shape[1], whole.weights).SerializeToString()
    return content
