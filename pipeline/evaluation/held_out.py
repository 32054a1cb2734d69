"""The images that the results are of, and what was said of them: by the model files, or out of fold.

With one split, the model files answer the test split. With `estimate.folds` every image was answered by a model that
saw no group of its own, while the model files learnt from all: theirs are the same recipe's trainings on fewer images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

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
    predict: Callable[[Alter], np.ndarray]  # the classes of these images, altered: [N]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images, the answers of both precisions, and the models that answer."""

    rows: pd.DataFrame  # of split.csv
    test: Sample
    fp32: File
    int8: File
    baseline: Callable[[Callable[[baselines.Images], np.ndarray]], np.ndarray]  # what it sees of images to classes [N]
    models: Callable[[], Iterator[tuple[OnnxModel, np.ndarray]]]  # FP32; the images each answers for: bool [N]
    out_of_fold: OutOfFold | None = None


def measure(recipe: Params, fp32: OnnxModel, int8: OnnxModel, images: np.ndarray, split: pd.DataFrame) -> HeldOut:
    """Asks the model files about the test split, or reads what the folds' files said of all images."""
    return (_by_folds if recipe.estimate.folds else _by_split)(recipe, fp32, int8, images, split)


def explained(held: HeldOut, seed: int, cells: np.ndarray | None) -> Explanations:
    """Tests of one model's maps, on the images that it answers for; with folds, the first one's, of no temperature."""
    model, mine = next(held.models())
    test = replace(held.test, **{name: getattr(held.test, name)[mine] for name in ("pixels", "labels", "groups")})
    test = replace(test, weights=held.test.weights[:, mine])
    return explanations.measure(model, test, held.fp32.answers.only(mine), seed, None if cells is None else cells[mine])


def _by_split(recipe: Params, fp32: OnnxModel, int8: OnnxModel, images: np.ndarray, split: pd.DataFrame) -> HeldOut:
    rows, train = (split[split["split"] == name] for name in ("test", "train"))
    answers.check(rows, images, fp32, [c.key for c in recipe.classes])
    test = answers.sample(images[rows.index], rows, recipe.evaluate.bootstrap, recipe.seed)

    def file(model: OnnxModel) -> File:
        sets = model.contract.prediction_sets
        assert sets is not None, "pipeline.export writes version 2, which has them"
        said = answers.answer(model, test.pixels)

        def predict(alter: Alter) -> np.ndarray:
            return model.predicted(Altered(np.arange(len(rows)), alter))

        return File(said, np.array(sets.thresholds), model.contract.temperature, predict)

    def baseline(look: Callable[[baselines.Images], np.ndarray]) -> np.ndarray:
        learnt = [images[i] for i in train.index], train["label"].to_numpy()
        return baselines.predict(look, *learnt, test.pixels, recipe.seed)

    return HeldOut(rows, test, file(fp32), file(int8), baseline, lambda: iter([(fp32, np.ones(len(rows), bool))]))


def _by_folds(recipe: Params, fp32: OnnxModel, int8: OnnxModel, images: np.ndarray, split: pd.DataFrame) -> HeldOut:
    answers.check(split, images, fp32, [c.key for c in recipe.classes])
    test = answers.sample(np.asarray(images), split, recipe.evaluate.bootstrap, recipe.seed)
    said = {
        model.contract.precision: out_of_fold.read(recipe, split, model.contract.precision) for model in (fp32, int8)
    }
    seed, fold, sides = recipe.estimate.seeds[0], said["fp32"].fold, folds.read(split)

    def model_of(number: int, model: OnnxModel) -> OnnxModel:
        path = folds.folder(number, seed) / f"{model.contract.precision}.onnx"
        return OnnxModel(path, model.contract, runtime.open_session(path, 1))

    def file(model: OnnxModel) -> File:
        mine = said[model.contract.precision]
        limits = _limits_by_others(recipe, said["fp32"], mine, test.labels, model.contract)
        temperature = np.array([[limits[one].temperature] for one in fold])
        scale = np.array([_others(mine, one, recipe) for one in recipe.estimate.folds])[fold]
        outputs = mine.calibrated(temperature, scale).outputs
        each = [
            answers.decided(
                {name: value[fold == one] for name, value in outputs.items()}, test.pixels[fold == one], limits[one]
            )
            for one in recipe.estimate.folds
        ]

        def predict(alter: Alter) -> np.ndarray:
            classes = np.empty(len(fold), int)
            for one in recipe.estimate.folds:
                mine = np.flatnonzero(fold == one)
                classes[mine] = model_of(one, model).predicted(Altered(mine, alter))
            return classes

        thresholds = np.array([limits[one].prediction_sets.thresholds for one in fold])
        return File(_in_order(each, fold), thresholds, temperature, predict)

    def baseline(look: Callable[[baselines.Images], np.ndarray]) -> np.ndarray:
        seen, classes = look(images), np.empty(len(split), int)
        for one in recipe.estimate.folds:
            train = (sides[str(one)] == "train").to_numpy()
            classes[fold == one] = baselines.of_features(
                seen[train], test.labels[train], seen[fold == one], recipe.seed
            )
        return classes

    def models() -> Iterator[tuple[OnnxModel, np.ndarray]]:
        return ((model_of(one, fp32), fold == one) for one in recipe.estimate.folds)

    spread = _spread(recipe, split, test, sides)
    return HeldOut(split, test, file(fp32), file(int8), baseline, models, spread)


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


def _others(mine: out_of_fold.OutOfFold, one: int, recipe: Params) -> float:
    """The unlikeness that counts as 1 for a fold's images: a quantile of the other folds'."""
    return float(np.quantile(mine.outputs["unlikeness"][mine.fold != one], recipe.calibrate.unlikeness_quantile))


def _in_order(each: Sequence[Answers], fold: np.ndarray) -> Answers:
    """The folds' answers as one, in the order of the images."""
    places = np.argsort(np.concatenate([np.flatnonzero(fold == one) for one in range(len(each))]))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in each])[places]

    reasons = [reasons for part in each for reasons in part.reasons]
    arrays = {name: joined(name) for name in ("probabilities", "unlikeness", "embedding", "cam")}
    if each[0].malignant is not None:
        arrays |= {name: joined(name) for name in ("p_malignant", "malignant")}
    return replace(each[0], **arrays, reasons=[reasons[place] for place in places])


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
