"""Grad-CAM as TensorFlow differentiates it: what the closed form in the graph is held against."""

import keras
import numpy as np
import tensorflow as tf

from pipeline.network import classifier


def by_tape(whole: keras.Model, images: np.ndarray) -> np.ndarray:
    """The maps of every class's logit, float32 [N, C, h, w], of images uint8 [N, S, S, 3] (Selvaraju et al. 2017)."""
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
