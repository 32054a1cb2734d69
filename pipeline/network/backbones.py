"""The backbones, from `keras.applications`, each with the normalisation that its weights were trained with."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

Rgb = tuple[float, float, float]

# Mean and deviation of each channel, on 0..255. keras.applications calls these conventions caffe, tf and torch.
_CAFFE: tuple[Rgb, Rgb] = ((123.68, 116.779, 103.939), (1, 1, 1))
_TF: tuple[Rgb, Rgb] = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
_TORCH: tuple[Rgb, Rgb] = ((255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225))


@dataclass(frozen=True)
class Backbone:
    """How to build one, and how to normalise a pixel: (pixel − mean) ÷ deviation, in RGB.

    `bgr_kernel` is the first convolution of a network whose weights were trained on BGR. `low_level` is an early layer,
    whose features still hold colour and texture that do not matter for the class.
    """

    make: Callable[..., keras.Model]
    mean: Rgb
    deviation: Rgb
    low_level: str
    bgr_kernel: str | None = None

    def base(self, weights: str | None = None, **where: Any) -> keras.Model:
        """The network without its top, on `input_tensor` or of `input_shape`; random, or `weights="imagenet"`."""
        base = self.make(include_top=False, weights=weights, **where)
        # Keras counts unnamed layers (InceptionV3's) over the whole process, but weights are found by name.
        seen: Counter[str] = Counter()
        for layer in base.layers:
            if unnamed := re.fullmatch(r"(activation|batch_normalization|concatenate|\w+2d)(_\d+)?", layer.name):
                layer.name = f"{unnamed[1]}_{seen[unnamed[1]]}"
                seen[unnamed[1]] += 1
        return base


_APPLICATIONS = keras.applications
BACKBONES = {
    "ResNet50": Backbone(_APPLICATIONS.ResNet50, *_CAFFE, "conv2_block3_out", bgr_kernel="conv1_conv"),
    "VGG16": Backbone(_APPLICATIONS.VGG16, *_CAFFE, "block2_pool", bgr_kernel="block1_conv1"),
    "InceptionV3": Backbone(_APPLICATIONS.InceptionV3, *_TF, "max_pooling2d_1"),
    "DenseNet121": Backbone(_APPLICATIONS.DenseNet121, *_TORCH, "pool2_pool"),
    # Without its own preprocessing layers, so that every backbone is normalised in one place.
    "EfficientNetV2B0": Backbone(
        partial(_APPLICATIONS.EfficientNetV2B0, include_preprocessing=False), *_TORCH, "block2b_add"
    ),
}
