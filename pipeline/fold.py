"""Trains the recipe with one fold held out, and asks both model files of that training about it.

Reads:  data/prepared/, data/folds/folds.csv, data/features/ (for the recipe's own seed), params
Writes: data/folds/<seed>-<fold>/: the two files, fp32.onnx and int8.onnx, with no temperature and an unscaled
        unlikeness; what each said, fp32.npz and int8.npz (pipeline.model_file.out_of_fold reads them)
Run:    python -m pipeline.fold FOLD SEED
"""

import argparse
import shutil
from functools import partial
from typing import Any

import numpy as np
import onnx

from leukdetect import similar
from leukdetect.contract import OUTPUTS
from leukdetect.runtime import cpus, open_session
from pipeline import params, stage
from pipeline.data import folds, prepared
from pipeline.model_file import calibration, graph, onnx_model, quantise, similar_index
from pipeline.network import inference, refit, to_onnx
from pipeline.stage import Problem

SEEN = 1000  # training images whose embeddings are kept: what the held-out ones' drift is measured against


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("fold", type=int)
    arguments.add_argument("seed", type=int)
    options = arguments.parse_args()
    fold, seed = options.fold, options.seed
    project = params.load()
    recipe = project.model_copy(update={"seed": seed})
    pixels, frame = prepared.read()
    sides = folds.read(frame)
    if str(fold) not in sides:
        raise Problem(
            f"{folds.SIDES} has the folds {', '.join(sides) or '–'}, and not {fold}: see params.yaml's estimate"
        )
    frame = frame.assign(split=sides[str(fold)])
    train, test = (frame[frame["split"] == side] for side in ("train", "test"))
    rng = np.random.default_rng(seed)

    own = stage.STATE / "fold" / f"{seed}-{fold}"
    state = own / stage.state_key(params.until(recipe, "fine_tune"), prepared.digest(), stage.sha256(folds.SIDES))
    stage.drop_others(state)
    print(f"fold {fold}, seed {seed}: {len(train)} images are trained on, {len(test)} held out", flush=True)
    whole = refit.refit(recipe, frame, state / "training", views_of=project if seed == project.seed else None)

    print("exporting the model, and asking both of its files", flush=True)
    low_level = inference.low_level(whole, pixels, train.index.to_numpy())
    space = calibration.fit_unlikeness(low_level, train["label"].to_numpy(), recipe.calibrate.components)
    proto = to_onnx.to_onnx(graph.contract_function(whole, 1.0, space), recipe.prepare.image_size, whole.weights)
    chosen = np.sort(rng.permutation(train.index)[: recipe.export.int8_images])
    files = {"fp32": proto, "int8": quantise.quantise(proto, pixels[chosen])}
    seen = np.sort(rng.permutation(train.index)[:SEEN])
    indexed = train.iloc[similar_index.choose(train["label"].to_numpy(), seed)]
    learnt = np.union1d(seen, indexed.index)

    with stage.writing(folds.folder(fold, seed)) as folder:
        folder.mkdir()
        for precision, made in files.items():
            session = open_session(made.SerializeToString(), 1)
            ask = partial(onnx_model.answers, session, batch=onnx_model.BATCH, threads=cpus())
            embedding = ask(pixels[learnt], ("embedding",))["embedding"]
            of_seen, of_indexed = (embedding[np.searchsorted(learnt, rows)] for rows in (seen, indexed.index))
            answers = ask(pixels[test.index], OUTPUTS)
            arrays: dict[str, Any] = answers | {"rows": test.index.to_numpy(), "seen": of_seen, "seen_rows": seen}
            np.savez(folder / f"{precision}.npz", allow_pickle=False, **arrays)
            index = similar_index.fit(of_indexed, indexed["label"].to_numpy(), indexed["sha256"].tolist(), None)
            onnx.helper.set_model_props(made, similar.metadata(index))
            onnx.save(made, folder / f"{precision}.onnx")
    shutil.rmtree(own)
    right = (answers["probabilities"].argmax(1) == test["label"]).groupby(test["class"]).mean()
    print("recall of what was held out:", ", ".join(f"{key} {share:.3f}" for key, share in right.items()))


if __name__ == "__main__":
    stage.run(main)
