"""The images that the results are of, and what was said of them: by the model files, or out of fold.

With one split, the model files answer the test split. With `estimate.folds` every image was answered by a model that
saw no group of its own, while the model files learnt from all: theirs are the same recipe's trainings on fewer images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from leukdetect import runtime
from leukdetect.contract import Contract
from pipeline.data import folds
from pipeline.evaluation import answers, baselines, explanations, metrics
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.explanations import Explanations
from pipeline.evaluation.spread import OutOfFold
from pipeline.model_file import calibration, out_of_fold, prediction_sets
from pipeline.model_file.onnx_model import Alter, Altered, OnnxModel
from pipeline.params import Params


@dataclass(frozen=True, eq=False)
class File:
    """What one precision said of the held-out images."""

    answers: Answers
    set_thresholds: np.ndarray  # of the prediction sets, [C] or [N, C]
    temperature: float | np.ndarray  # or [N, 1]
    models: Callable[[], Iterator[tuple[OnnxModel, np.ndarray]]]  # each with the images that it answers for: bool [N]

    def predict(self, alter: Alter) -> np.ndarray:
        """The classes of these images, altered: int [N]."""
        classes = np.empty(len(self.answers.probabilities), int)
        for model, mine in self.models():
            classes[mine] = model.predicted(Altered(np.flatnonzero(mine), alter))
        return classes


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images, and what both precisions said of them."""

    rows: pd.DataFrame  # of split.csv
    test: Sample
    fp32: File
    int8: File
    baseline: Callable[[Callable[[baselines.Images], np.ndarray]], np.ndarray]  # what it sees of images to classes [N]
    out_of_fold: OutOfFold | None = None


def measure(recipe: Params, fp32: OnnxModel, int8: OnnxModel, images: np.ndarray, split: pd.DataFrame) -> HeldOut:
    """Asks the model files about the test split, or reads what the folds' files said of all images."""
    return (_by_folds if recipe.estimate.folds else _by_split)(recipe, fp32, int8, images, split)


def explained(held: HeldOut, seed: int, cells: np.ndarray | None) -> Explanations:
    """Tests of one model's maps, on the images that it answers for; with folds, the first one's, of no temperature."""
    model, mine = next(held.fp32.models())
    test, said = held.test.only(mine), held.fp32.answers.only(mine)
    return explanations.measure(model, test, said, seed, None if cells is None else cells[mine])


def _by_split(recipe: Params, fp32: OnnxModel, int8: OnnxModel, images: np.ndarray, split: pd.DataFrame) -> HeldOut:
    rows, train = (split[split["split"] == name] for name in ("test", "train"))
    answers.check(rows, images, fp32, [c.key for c in recipe.classes])
    test = answers.sample(images[rows.index], rows, recipe.evaluate.bootstrap, recipe.seed)

    def file(model: OnnxModel) -> File:
        sets = model.contract.prediction_sets
        assert sets is not None, "pipeline.export writes version 2, which has them"
        said, every = answers.answer(model, test.pixels), np.ones(len(rows), bool)
        return File(said, np.array(sets.thresholds), model.contract.temperature, lambda: iter([(model, every)]))

    def baseline(look: Callable[[baselines.Images], np.ndarray]) -> np.ndarray:
        learnt = [images[i] for i in train.index], train["label"].to_numpy()
        return baselines.predict(look, *learnt, test.pixels, recipe.seed)

    return HeldOut(rows, test, file(fp32), file(int8), baseline)


def _by_folds(recipe: Params, fp32: OnnxModel, int8: OnnxModel, images: np.ndarray, split: pd.DataFrame) -> HeldOut:
    answers.check(split, images, fp32, [c.key for c in recipe.classes])
    test = answers.sample(np.asarray(images), split, recipe.evaluate.bootstrap, recipe.seed)
    said = {
        model.contract.precision: out_of_fold.read(recipe, split, model.contract.precision) for model in (fp32, int8)
    }
    fold, sides = said["fp32"].fold, folds.read(split)

    def file(model: OnnxModel) -> File:
        mine = said[model.contract.precision]
        by_fold = _limits_by_others(recipe, said["fp32"], mine, test.labels, model.contract)
        limits = [by_fold[one] for one in fold]
        temperature = np.array([[each.temperature] for each in limits])
        outputs = mine.calibrated(temperature, _scales_by_others(recipe, mine)[fold]).outputs
        thresholds = np.array([each.prediction_sets.thresholds for each in limits])

        def models() -> Iterator[tuple[OnnxModel, np.ndarray]]:
            for one in recipe.estimate.folds:
                path = folds.folder(one, recipe.estimate.seeds[0]) / f"{model.contract.precision}.onnx"
                yield OnnxModel(path, model.contract, runtime.open_session(path, 1)), fold == one

        return File(answers.decided(outputs, test.pixels, limits), thresholds, temperature, models)

    def baseline(look: Callable[[baselines.Images], np.ndarray]) -> np.ndarray:
        seen, classes = look(images), np.empty(len(split), int)
        for one in recipe.estimate.folds:
            train = (sides[str(one)] == "train").to_numpy()
            classes[fold == one] = baselines.of_features(
                seen[train], test.labels[train], seen[fold == one], recipe.seed
            )
        return classes

    return HeldOut(split, test, file(fp32), file(int8), baseline, _spread(recipe, split, test, sides))


def _limits_by_others(
    recipe: Params, fp32: out_of_fold.OutOfFold, mine: out_of_fold.OutOfFold, labels: np.ndarray, contract: Contract
) -> list[Contract]:
    """The contract for each fold's images, with limits that were fitted to the other folds' alone."""
    found = []
    for one in recipe.estimate.folds:
        others = fp32.fold != one
        limits = calibration.fit_limits(fp32.logits[others], labels[others], recipe)
        probabilities = mine.calibrated(limits.temperature, 1).outputs["probabilities"][others]
        sets = prediction_sets.fit(probabilities, labels[others], recipe.calibrate.set_error)
        thresholds = contract.thresholds.model_copy(
            update={"malignant": limits.malignant, "confidence": limits.confidence}
        )
        update = {"temperature": limits.temperature, "thresholds": thresholds, "prediction_sets": sets}
        found.append(contract.model_copy(update=update))
    return found


def _scales_by_others(recipe: Params, mine: out_of_fold.OutOfFold) -> np.ndarray:
    """The unlikeness that counts as 1 for each fold's images: a quantile of the other folds'."""
    others = [mine.outputs["unlikeness"][mine.fold != one] for one in recipe.estimate.folds]
    return np.array([np.quantile(each, recipe.calibrate.unlikeness_quantile) for each in others])


def _spread(recipe: Params, split: pd.DataFrame, test: Sample, sides: pd.DataFrame) -> OutOfFold:
    by_seed = [out_of_fold.read(recipe, split, "fp32", seed) for seed in recipe.estimate.seeds]
    ones = np.ones((1, len(split)))

    def accuracy(said: out_of_fold.OutOfFold, within: np.ndarray) -> float:
        predicted = said.outputs["probabilities"].argmax(1)
        return float(metrics.balanced_accuracy(test.labels[within], predicted[within], ones[:, within])[0])

    return OutOfFold(
        folds=len(recipe.estimate.folds),
        trained_on=float((sides == "train").sum().mean()),
        seeds=recipe.estimate.seeds,
        each_seed=[accuracy(said, np.ones(len(split), bool)) for said in by_seed],
        each_fold=[[accuracy(said, said.fold == one) for one in recipe.estimate.folds] for said in by_seed],
    )
