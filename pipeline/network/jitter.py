"""Random views of cells for pretraining, as TensorFlow operations: a batch at once, on whatever device trains.

Size, place, turn and the stain vary by more than between laboratories, so that features rest on neither.
"""

import numpy as np
import tensorflow as tf

ZOOM = (0.7, 1.4)  # side of the crop, in sides of the image: beyond 1 the image is mirrored at its edges
STRETCH, SHIFT = 0.1, 0.35
STAIN, STAIN_SHIFT = 0.2, 0.06  # of each stain's density
GAIN, CONTRAST, SATURATION, LIGHT = 0.12, 0.2, 0.3, 15.0
BLUR, NOISE = (-0.7, 1.0), 4.0  # below 0 it is sharpened
# Rows: haematoxylin, eosin, residue (Ruifrok and Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BELL = np.exp(-0.5 * np.arange(-2, 3) ** 2).astype(np.float32)  # a Gaussian of one pixel
_KERNEL = np.repeat((np.outer(_BELL, _BELL) / _BELL.sum() ** 2)[:, :, None, None], 3, axis=2)


def view(pixels: tf.Tensor, size: int, colour: float, seed: tf.Tensor) -> tf.Tensor:
    """One view of each of uint8 [N, H, H, 3], as uint8 [N, size, size, 3]; the seed, [2], decides alone.

    `colour` multiplies how far colours may go.
    """
    seeds = tf.random.experimental.stateless_split(seed, 2)
    drawn = tf.random.stateless_uniform((tf.shape(pixels)[0], 19), seeds[0], -1, 1)
    moved = _moved(tf.cast(pixels, tf.float32), size, drawn[:, :7])
    shown = _coloured(moved, tf.concat([colour * drawn[:, 7:18], drawn[:, 18:]], axis=1))
    noise = tf.random.stateless_normal(tf.shape(shown), seeds[1]) * NOISE * tf.abs(drawn[:, 6, None, None, None])
    return tf.cast(tf.clip_by_value(shown + noise + 0.5, 0, 255), tf.uint8)


def plain(pixels: tf.Tensor, size: int) -> tf.Tensor:
    """The same without chance: each image resized, antialiased."""
    small = tf.image.resize(tf.cast(pixels, tf.float32), (size, size), antialias=True)
    return tf.cast(tf.clip_by_value(small + 0.5, 0, 255), tf.uint8)


def _moved(pixels: tf.Tensor, size: int, drawn: tf.Tensor) -> tf.Tensor:
    """Turned by any angle, flipped, zoomed, stretched and shifted, in one bilinear resampling."""
    side = tf.cast(tf.shape(pixels)[1], tf.float32)
    turn, zoom, stretch, flip, x, y, _ = tf.unstack(drawn, axis=1)
    low, high = np.log(ZOOM)
    crop = tf.exp(low + (high - low) * (zoom + 1) / 2)
    step, wide = crop * side / size, tf.exp(STRETCH * stretch)
    cos, sin = tf.cos(np.pi * turn), tf.sin(np.pi * turn)
    right, down = step * wide * tf.where(flip < 0, -1.0, 1.0), step / wide
    a, b, d, e = cos * right, -sin * down, sin * right, cos * down
    far, centre, middle = side * (SHIFT * tf.abs(1 - crop) + 0.05), (side - 1) / 2, (size - 1) / 2
    zero = tf.zeros_like(a)
    maps = tf.stack(
        [a, b, centre + far * x - (a + b) * middle, d, e, centre + far * y - (d + e) * middle, zero, zero], axis=1
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=maps,
        output_shape=(size, size),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def _coloured(pixels: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
    """Other amounts of each stain, channel gains, saturation, contrast, light and sharpness; float, unclipped."""
    each = drawn[:, None, None, :]
    amounts = tf.tensordot(-tf.math.log((pixels + 1) / 256), np.linalg.inv(_STAINS), 1)
    amounts = amounts * (1 + STAIN * each[..., 0:3]) + STAIN_SHIFT * each[..., 3:6]
    shown = 256 * tf.exp(-tf.tensordot(amounts, _STAINS, 1)) - 1
    shown *= 1 + GAIN * tf.stack([each[..., 6], each[..., 7], -(each[..., 6] + each[..., 7]) / 2], axis=-1)
    grey = tf.reduce_sum(shown * _LUMA, axis=-1, keepdims=True)
    shown = grey + (shown - grey) * (1 + SATURATION * each[..., 8:9])
    mean = tf.reduce_mean(shown, axis=(1, 2), keepdims=True)
    shown = mean + (shown - mean) * (1 + CONTRAST * each[..., 9:10]) + LIGHT * each[..., 10:11]
    blurred = tf.nn.depthwise_conv2d(
        tf.pad(shown, ((0, 0), (2, 2), (2, 2), (0, 0)), "REFLECT"), _KERNEL, (1, 1, 1, 1), "VALID"
    )
    low, high = BLUR
    return shown + (blurred - shown) * (low + (high - low) * (each[..., 11:12] + 1) / 2)
