"""How the base's last maps [N, h, w, D] become one vector an image, where that is not their average."""

import keras

from pipeline.stage import Problem

ATTENTION, ATTENDED = "head_attention", "head_attended"
MOMENTS = "head_moments"
POOLING_FLOAT32 = ("head_attention_scores", "head_attention_listed", ATTENTION, ATTENDED, MOMENTS)
HIDDEN = 128  # of attention, per position
SMALLEST = 1e-6  # variance, whose root would have no slope at 0


@keras.saving.register_keras_serializable(package="leukdetect")
class Moments(keras.layers.Layer):
    """Mean and standard deviation over the positions: [N, h, w, D] to [N, 2 D].

    The deviation tells texture: how unevenly a feature lies over the field, which a mean cannot.
    """

    def call(self, maps: keras.KerasTensor) -> keras.KerasTensor:
        """Not by `keras.ops.std`: tf2onnx converts these."""
        mean = keras.ops.mean(maps, axis=(1, 2), keepdims=True)
        variance = keras.ops.mean(keras.ops.square(maps - mean), axis=(1, 2))
        deviation = keras.ops.sqrt(keras.ops.maximum(variance, SMALLEST))
        return keras.ops.concatenate([mean[:, 0, 0, :], deviation], axis=-1)


def attended(maps: keras.KerasTensor) -> keras.KerasTensor:
    """Gated attention pooling (Ilse, Tomczak and Welling 2018, arXiv:1802.04712, eq. 9): [N, h, w, D] to [N, D].

    Each position x gets a weight, the softmax over positions of w·(tanh(Vx) ⊙ sigmoid(Ux)); the weighted x are summed.
    Raises Problem where there is one position only.
    """
    _, height, width, channels = maps.shape
    if height * width == 1:
        raise Problem("model.pooling: the last maps are 1 × 1; give average, or a larger prepare.image_size")
    content = keras.layers.Conv2D(HIDDEN, 1, activation="tanh", name="head_attention_tanh")(maps)
    gate = keras.layers.Conv2D(HIDDEN, 1, activation="sigmoid", name="head_attention_gate")(maps)
    gated = keras.layers.Multiply(name="head_attention_gated")([content, gate])
    scores = keras.layers.Conv2D(1, 1, name="head_attention_scores")(gated)
    scores = keras.layers.Reshape((height * width, 1), name="head_attention_listed")(scores)
    weights = keras.layers.Softmax(axis=1, name=ATTENTION)(scores)
    positions = keras.layers.Reshape((height * width, channels), name="head_positions")(maps)
    return keras.layers.Flatten(name="head_pooled")(keras.layers.Dot(axes=1, name=ATTENDED)([weights, positions]))
