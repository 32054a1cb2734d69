"""Computes once what every epoch of both phases reads: augmented views of the training images, after the frozen part
of the network.

Reads:  data/prepared/, params (features.weights, fine_tune.trainable_from, augment)
Writes: data/features/inputs/view-00.npy … [n, …] and val.npy [m, …] (not augmented): float16 activations where the
        frozen part ends; uint8 images where nothing is frozen
        data/features/pooled/view-00.npy … float32 [n, 2048] and val.npy [m, 2048], of a pretrained base; or
        data/features/maps/… float16 [n, h, w, 2048], where the pooling is attention
        data/features.json: of what they are; DVC keeps this alone
Run:    python -m pipeline.features     (with RAY_ADDRESS: on that Ray cluster, to the same bytes)
"""

from pipeline import params, stage
from pipeline.network import precompute, stored
from pipeline.registry import tracking


def main() -> None:
    recipe = params.load()
    tracking.check()  # an unreachable server is found now, not after an hour of training
    precompute.fill(recipe)
    stage.write_json(stored.RECORD, stage.read_json(stored.FEATURES / stored.RECORD.name, "features"))


if __name__ == "__main__":
    stage.run(main)
