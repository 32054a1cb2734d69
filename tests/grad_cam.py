"""The maps as TensorFlow differentiates them: what the closed form in the graph is held against."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from pipeline.network import classifier


def by_tape(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    """Grad-CAM of every class's logit, float32 [N, C, h, w], of images uint8 [N, S, S, 3] (Selvaraju et al. 2017)."""
    maps, gradients = _gradients(whole, images)
    return np.maximum((gradients.mean(axis=(2, 3), keepdims=True) * maps[:, None]).sum(axis=-1), 0)


def gradient_times_maps(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    """Each class's logit's gradient by the maps, times the maps, summed over features: [N, C, h, w], with its sign."""
    maps, gradients = _gradients(whole, images)
    return np.asarray((gradients * maps[:, None]).sum(axis=-1))


def contributions(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    """As `gradient_times_maps`, with the attention that the image gets held fast."""
    attention = keras.Model(whole.input, classifier.attention(whole))(images, training=False)
    head = keras.Model(classifier.embedding(whole), whole.get_layer("logits").output)

    def of_maps(maps: tf.Tensor) -> tf.Tensor:
        return head(tf.reduce_sum(tf.reshape(attention, (*maps.shape[:3], 1)) * maps, axis=(1, 2)), training=False)

    maps, gradients = _gradients(whole, images, of_maps)
    return np.asarray((gradients * maps[:, None]).sum(axis=-1))


def _gradients(
    whole: keras.Model, images: np.ndarray, head: Callable[[tf.Tensor], tf.Tensor] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The base's last maps [N, h, w, D], and each logit's gradient by them [N, C, h, w, D]; `head`: maps to logits."""
    maps = keras.Model(whole.input, classifier.feature_maps(whole))(images, training=False)
    head = head or keras.Model(classifier.feature_maps(whole), whole.get_layer("logits").output)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(maps)
        logits = tf.unstack(head(maps), axis=1)
    return maps.numpy(), np.stack([tape.gradient(logit, maps).numpy() for logit in logits], axis=1)
