"""`params.yaml` as frozen, typed models, one class a section (`pipeline.sections`).

An unknown or missing key, or a value out of range, is an error that names the key and the value.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, model_validator

from pipeline import sections
from pipeline.stage import Problem

PARAMS_FILE = Path("params.yaml")

Checked = TypeVar("Checked", bound=BaseModel)


class Params(sections.Section):
    seed: NonNegativeInt
    classes: Annotated[list[sections.ClassParams], Field(min_length=2)]
    wording: sections.Wording
    fetch: sections.Fetch
    demo: sections.Demo
    validate_: sections.Validate = Field(alias="validate")  # pydantic's own method has the plain name
    prepare: sections.Prepare
    estimate: sections.Estimate
    model: sections.Model
    augment: sections.Augment
    features: sections.Features
    train_head: sections.TrainHead
    fine_tune: sections.FineTune
    calibrate: sections.Calibrate
    export: sections.Export
    evaluate: sections.Evaluate
    register_: sections.Register = Field(alias="register")

    @property
    def tells_malignancy(self) -> bool:
        """Some classes are malignant and some are not."""
        return {each.malignant for each in self.classes} == {True, False}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        keys = [c.key for c in self.classes]
        if len(set(keys)) != len(keys):
            raise ValueError(f"classes: a key repeats in {keys}")
        if self.features.weights == "none" and self.fine_tune.trainable_from != "all":
            raise ValueError(
                "fine_tune.trainable_from must be all when features.weights is none: "
                f"random layers below {self.fine_tune.trainable_from} would never learn"
            )
        if self.evaluate.label_of == "patient" and self.prepare.patient is None:
            raise ValueError("evaluate.label_of: patient needs prepare.patient, which says whose an image is")
        if self.model.backbone == "InceptionV3" and self.prepare.image_size < 75:
            raise ValueError(f"prepare.image_size: InceptionV3 needs 75 px or more, not {self.prepare.image_size}")
        if self.augment.stain > 0 and self.features.views < 2:
            raise ValueError(
                "augment.stain: the first view keeps its stain, so features.views must be 2 or more, not 1"
            )
        return self


def load(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks the recipe. Raises Problem if it is missing, no YAML, or as for `parse`."""
    try:
        return parse(yaml.safe_load(path.read_bytes()), str(path))
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing. Run from the project's root, or copy one of presets/ there.") from error
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none; brackets without end
        raise Problem(f"{path} is not valid YAML: {error}") from error


def parse(raw: Any, name: str = "params") -> Params:
    """Checks a recipe that was read already. Raises Problem if any key is unknown, missing or out of range."""
    return checked(Params, raw, name)


def checked(kind: type[Checked], raw: Any, name: str) -> Checked:
    """What was read from YAML as a model. Raises Problem, with a line for each key that is wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [f"{name} cannot be used:"]
        for item in error.errors():
            key = ".".join(map(str, item["loc"])) or "the file as a whole"
            match item["type"]:
                case "missing":
                    wrong = "missing; presets/ show every key"
                case "extra_forbidden":
                    wrong = f"unknown key (its value is {item['input']!r}); check the spelling or remove it"
                case "value_error":
                    wrong = item["msg"].removeprefix("Value error, ")
                case _:
                    wrong = f"{item['msg']} (it is {item['input']!r})"
            lines.append(f"  {key}: {wrong}")
        raise Problem("\n".join(lines)) from error


def until(recipe: Params, section: str) -> str:
    """All that a training stage depends on, as JSON: its section and those before it."""
    sections = ("seed", "classes", "prepare", "model", "augment", "features", "train_head", "fine_tune")
    return recipe.model_dump_json(by_alias=True, include=set(sections[: sections.index(section) + 1]))


def digest(recipe: Params) -> str:
    """SHA-256 of what builds the model."""
    return hashlib.sha256(recipe.model_dump_json(by_alias=True).encode()).hexdigest()
