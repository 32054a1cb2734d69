"""Cross-validation over k folds, which hold out every group once, and a learning curve.

Each fold trains the whole network again, since a base that has seen the held-out images would leak. So it costs k
trainings a share, on less data than the model itself has, and measures the recipe and not this model file. It resumes
after an interruption. `dvc repro` then copies the figures to reports/metrics.json, the report and MLflow. A recipe with
`estimate.folds` is trained as its stages do, without validation, and their folds are the estimate: this adds the curve.

Reads:  data/prepared/, params.yaml
Writes: reports/cross_validation.json, reports/cross_validation.csv (for pipeline.evaluation.compare),
        reports/cross_validation.png
Run:    python -m pipeline.cross_validate [--folds 3] [--shares 0.25 0.5 1]
"""

import argparse
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from pipeline import params, stage
from pipeline.data import folds, prepared
from pipeline.evaluation import baselines, learning_curve
from pipeline.evaluation.learning_curve import Folds
from pipeline.network import refit
from pipeline.params import Params
from pipeline.reporting.figures import learning_curve as curve
from pipeline.reporting.figures.style import STYLE, save
from pipeline.stage import Problem

CSV, PNG = (learning_curve.JSON.with_suffix(suffix) for suffix in (".csv", ".png"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--folds", type=int, default=3)
    arguments.add_argument("--shares", type=float, nargs="+", default=[1.0], help="of the training groups, 0 to 1")
    options = arguments.parse_args()
    k, shares = options.folds, sorted(set(options.shares))
    if k < 2 or not all(0 < share <= 1 for share in shares):
        raise Problem(f"--folds must be 2 or more and --shares above 0 and at most 1, not {k} and {shares}")
    recipe = params.load()
    if recipe.estimate.folds:
        print("`dvc repro` trains the folds of estimate.folds and makes the estimate; these are folds of their own")
    key = learning_curve.key(recipe, prepared.digest())
    state = stage.STATE / "cross_validate" / key
    stage.drop_others(state)

    by_share, last = {}, pd.DataFrame()
    for share in shares:
        last = pd.concat([_fold(recipe, k, fold, share, state) for fold in range(k)], ignore_index=True)
        found = by_share[f"{share:g}"] = learning_curve.summary(last, recipe)
        print(
            f"{share:.0%} of the training groups, about {found.trained_on:.0f} images: balanced accuracy "
            f"{found.balanced_accuracy} on {found.images} held-out images in {found.groups} groups; "
            f"colour only {found.colour_only}",
            flush=True,
        )
    result = Folds(key=key, folds=k, by_share=by_share)
    with stage.writing(CSV) as path:
        named = last.assign(image=prepared.images(last), group=prepared.numbers(last)).drop(columns="sha256")
        named.to_csv(path, index=False, float_format="%.6f")
    with stage.writing(PNG) as path, matplotlib.rc_context(STYLE):
        save(curve.figure(result), path, curve.sample(result), synthetic=recipe.fetch.synthetic, vector=False)
    stage.write_json(learning_curve.JSON, result.model_dump(mode="json"))
    shutil.rmtree(state)


def _fold(recipe: Params, k: int, fold: int, share: float, state: Path) -> pd.DataFrame:
    """The held-out predictions of one training, kept in `state` until all are done."""
    kept = state / f"{k}-{fold}-{share:g}.csv"
    if not kept.is_file():
        pixels, frame = prepared.read()
        if recipe.estimate.folds:
            sides = folds.held_out(frame, recipe.prepare, k, recipe.seed)[str(fold)]
        else:
            sides = folds.assign(frame, recipe.prepare, k, fold, recipe.seed)
        split = folds.thin(sides, frame, share, recipe.seed)
        counts = ", ".join(f"{n} {name}" for name, n in split.value_counts().items())
        print(f"fold {fold + 1} of {k}, {share:.0%} of the training groups: {counts}", flush=True)
        train, test = (frame[split == name] for name in ("train", "test"))
        whole = refit.refit(recipe, frame.assign(split=split), kept.with_suffix(""))
        probabilities = np.asarray(whole.predict(pixels[test.index], batch_size=32, verbose=0))
        seen = train["label"].to_numpy()
        by_colour = baselines.predict(baselines.colours, pixels[train.index], seen, pixels[test.index], recipe.seed)
        keys = np.array([c.key for c in recipe.classes])
        table = test[["sha256", "class", "group"]].assign(
            predicted=keys[probabilities.argmax(1)],
            confidence=probabilities.max(1),
            colour=keys[by_colour],
            fold=fold,
            trained_on=len(train),
        )
        with stage.writing(kept) as path:
            table.to_csv(path, index=False)
        shutil.rmtree(kept.with_suffix(""))
    return pd.read_csv(kept, dtype={"group": str})


if __name__ == "__main__":
    stage.run(main)
