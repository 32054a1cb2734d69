"""The maps as TensorFlow differentiates them: what the closed form in the graph is held against."""

import keras
import numpy as np
import tensorflow as tf

from pipeline.network import classifier


def by_tape(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    """Grad-CAM of every class's logit, float32 [N, C, h, w], of images uint8 [N, S, S, 3] (Selvaraju et al. 2017)."""
    maps = keras.Model(whole.input, classifier.feature_maps(whole))(images, training=False)
    head = keras.Model(classifier.feature_maps(whole), whole.get_layer("logits").output)
    cams = []
    for c in range(head.output.shape[-1]):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            logit = head(maps, training=False)[:, c]
        weights = tf.reduce_mean(tape.gradient(logit, maps), axis=(1, 2), keepdims=True)
        cams.append(tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1)).numpy())
    return np.stack(cams, axis=1)


def contributions(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    """Of each position to each class's logit, with its sign, [N, C, h, w]: the maps times the logit's gradient by them,
    with the attention that the image gets held fast."""
    tensors = [classifier.feature_maps(whole), classifier.attention(whole)]
    maps, attention = keras.Model(whole.input, tensors)(images, training=False)
    attention = tf.reshape(attention, (*maps.shape[:3], 1))
    head = keras.Model(classifier.embedding(whole), whole.get_layer("logits").output)
    found = []
    for c in range(head.output.shape[-1]):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            logit = head(tf.reduce_sum(attention * maps, axis=(1, 2)), training=False)[:, c]
        found.append(tf.reduce_sum(tape.gradient(logit, maps) * maps, axis=-1).numpy())
    return np.stack(found, axis=1)


def gradient_times_maps(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    """Each class's logit's gradient by the maps, times the maps, summed over features: [N, C, h, w], with its sign."""
    maps = keras.Model(whole.input, classifier.feature_maps(whole))(images, training=False)
    head = keras.Model(classifier.feature_maps(whole), whole.get_layer("logits").output)
    found = []
    for c in range(head.output.shape[-1]):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            logit = head(maps, training=False)[:, c]
        found.append(tf.reduce_sum(tape.gradient(logit, maps) * maps, axis=-1).numpy())
    return np.stack(found, axis=1)
