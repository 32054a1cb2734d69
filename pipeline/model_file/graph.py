"""The contract's graph, with all four outputs, as TensorFlow operations that convert to ONNX."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from pipeline.network import classifier, pooling

FINEST = 14  # positions a side of `cam`: one of more is specks that nobody sees
FLOOR = np.sqrt(np.float32(pooling.SMALLEST))  # of a deviation, where it has no slope


def contract_function(
    whole: keras.Model, temperature: float, space: dict[str, np.ndarray]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Image uint8 [N, S, S, 3] to probabilities [N, C], embedding [N, D], unlikeness [N], cam [N, C, h, w], and
    attention [N, h, w] where the pooling has it; h and w are those of the last maps, or of squares of their positions.

    `cam` is what each position gives to a class's logit: its weight in the pooled vector, 1 ÷ (h·w) or its attention,
    times the product of its features and the logit's gradient by that vector, which for a head of ReLUs is a product
    of its matrices without the inactive units. Where maps are finer than `FINEST`, what lies in each of equal squares
    is summed. What is taken away is 0. After average pooling that is Grad-CAM (Selvaraju et al. 2017). To deviations a
    position gives by how far it lies from the mean: the product of its features and their own gradient (Draelos and
    Carin 2020, arXiv:2011.08891). Of attention, how the weights themselves depend on the image is left out, so that the
    contributions still sum to the logit, but for its constants.
    """
    outputs = [classifier.low_level(whole), classifier.feature_maps(whole), classifier.embedding(whole)]
    hidden, slope_of = _slope(whole)
    outputs += [whole.get_layer("logits").output, *hidden]
    if (weights := classifier.attention(whole)) is not None:
        outputs.append(weights)
    trunk = keras.Model(whole.get_layer(classifier.NORMALISED).output, outputs)

    def call(image: tf.Tensor) -> dict[str, tf.Tensor]:
        read = trunk(classifier.normalised(whole, image), training=False)
        low_level, maps, embedding, logits, *rest = read
        slope, attention = slope_of(logits, *rest[: len(hidden)]), rest[len(hidden) :]
        _, height, width, channels = maps.shape
        positions = tf.reshape(maps, [-1, height * width, channels])
        if classifier.moments(whole):
            mean, deviation = tf.split(embedding[:, None, :], 2, axis=-1)
            of_mean, of_deviation = tf.split(slope, 2, axis=-1)
            of_deviation = tf.where(deviation > FLOOR, of_deviation / deviation, 0.0)
            signed = tf.matmul(of_mean - of_deviation * mean, positions, transpose_b=True)
            signed += tf.matmul(of_deviation, positions**2, transpose_b=True)
        else:
            signed = tf.matmul(slope, positions, transpose_b=True)
        shares = [tf.transpose(each, [0, 2, 1]) for each in attention]  # [N, 1, h·w]
        cam = _squares(signed * shares[0] if shares else signed / (height * width), height, width)

        # pipeline.model_file.calibration.unlikeness
        offset = low_level[:, None, :] - space["means"][None]
        along = tf.matmul(offset, space["directions"])
        outside = tf.nn.relu(tf.reduce_sum(offset**2, -1) - tf.reduce_sum(along**2, -1))
        squared = tf.reduce_sum(along**2 / space["variances"], -1) + outside / space["rest"]

        answer = {
            "probabilities": tf.nn.softmax(logits / temperature),
            "embedding": embedding,
            "unlikeness": tf.sqrt(tf.reduce_min(squared, 1)) / space["scale"],
            "cam": tf.nn.relu(cam),
        }
        return answer | {"attention": _squares(shares[0], height, width)[:, 0]} if shares else answer

    return call


def _squares(values: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Positions [N, C, h·w] as [N, C, h', w'], at most `FINEST` a side: sums over equal squares."""
    grid = tf.reshape(values, [-1, values.shape[1], height, width])
    if max(height, width) <= FINEST:
        return grid
    return tf.matmul(tf.matmul(_parts(height), grid), _parts(width), transpose_b=True)


def _parts(count: int) -> np.ndarray:
    """How much of each of `count` positions in a row each of at most `FINEST` equal parts holds: [parts, count]."""
    parts, position = min(count, FINEST), np.arange(count)
    edges = np.arange(parts + 1)[:, None] * count / parts
    shares = np.minimum(edges[1:], position + 1) - np.maximum(edges[:-1], position)
    return np.maximum(shares, 0).astype(np.float32)


def _slope(whole: keras.Model) -> tuple[list[keras.KerasTensor], Callable[..., tf.Tensor]]:
    """Tensors of the head, and a function of the logits and these: d logits / d embedding, [N, C, D]."""
    bn, last = whole.get_layer("head_bn"), whole.get_layer("logits").get_weights()[0]
    gamma, _, _, variance = bn.get_weights()
    bn_slope = gamma / np.sqrt(variance + bn.epsilon)
    if classifier.linear(whole):  # not made a constant, so that the file holds the kernel as the answer has it
        return [], lambda logits: tf.ones_like(logits)[:, :, None] * last.T[None] * bn_slope
    dense_1, dense_2 = (whole.get_layer(name).get_weights()[0] for name in ("head_dense_1", "head_dense_2"))

    def paper(_: tf.Tensor, hidden_1: tf.Tensor, hidden_2: tf.Tensor) -> tf.Tensor:
        active_2 = tf.cast(hidden_2 > 0, tf.float32)[:, None, :]
        active_1 = tf.cast(hidden_1 > 0, tf.float32)[:, None, :]
        slope = tf.matmul(active_2 * last.T[None], dense_2.T) * active_1 * bn_slope
        return tf.matmul(slope, dense_1.T)

    return [whole.get_layer(name).output for name in ("head_relu_1", "head_relu_2")], paper
