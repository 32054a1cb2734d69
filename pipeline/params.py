"""`params.yaml` as frozen, typed models, one class a section. params.yaml itself says what each key is for.

An unknown or missing key, or a value out of range, is an error that names the key and the value.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.stage import Problem

PARAMS_FILE = Path("params.yaml")

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Checked = TypeVar("Checked", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassParams(Section):
    key: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    label: str
    malignant: bool
    folders: Annotated[list[str], Field(min_length=1)]


class Wording(Section):
    subject: str
    malignant: Annotated[str, Field(pattern=r"\{label\}")]
    other: Annotated[str, Field(pattern=r"\{label\}")]
    intended_use: str
    not_for: str
    limits: list[str]
    disclaimer: str


DEMO = {
    "origin": "Rendered by this project; no patient, no microscope",
    "licence": "MIT, as the code that rendered it",
    "thumbnails": True,
    "synthetic": True,
}


class Fetch(Section):
    source: Literal["demo", "kaggle", "archive", "folder"]
    kaggle: str | None
    archive: str | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    folder: str | None
    label: str | None
    table: str | None
    leave_out: list[str]
    origin: str
    licence: str
    thumbnails: bool
    synthetic: bool

    @model_validator(mode="before")
    @classmethod
    def _has_what_its_source_needs(cls, values: Any) -> Any:
        """The demo says itself what its images are. Of others only the user can, and what the demo left is untrue."""
        source = values.get("source") if isinstance(values, dict) else None
        if source == "demo":
            if wrong := [key for key, value in DEMO.items() if values.get(key) not in (None, value)]:
                raise ValueError(f"source: demo says itself what its images are; {', '.join(wrong)} must be null")
            return values | DEMO
        if source is None:
            return values
        if left := [key for key in ("origin", "licence") if values.get(key) == DEMO[key]]:
            raise ValueError(f"source: {source} needs its own {' and '.join(left)}, not the demo's")
        needed = ({"archive": ["archive", "sha256"]}.get(source) or [source]) + list(DEMO)
        if absent := [f"fetch.{key}" for key in needed if key in values and values[key] is None]:
            raise ValueError(f"source: {source} needs {', '.join(absent)}; params.yaml says beside each what it means")
        return values

    @model_validator(mode="after")
    def _one_way_to_a_label(self) -> Self:
        check_pattern("label", self.label, "label")
        if self.label is not None and self.table is not None:
            raise ValueError("label and table both say which class an image has: one of them must be null")
        return self


class Demo(Section):
    patients: Positive
    images_per_patient: Positive
    size: Annotated[int, Field(ge=32, le=512)]


class Validate(Section):
    min_side: Positive
    max_side: Positive
    min_images_per_class: Positive
    max_imbalance: Annotated[float, Field(ge=1)]
    brightness: tuple[float, float]
    min_sharpness: Annotated[float, Field(ge=0)]
    max_broken: Annotated[int, Field(ge=0)]


class Fractions(Section):
    train: Rate
    val: Rate
    test: Rate

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + val + test must be 1, not {total:g}")
        return self


class Prepare(Section):
    image_size: Annotated[int, Field(ge=32, le=1024)]
    patient: str | None
    number: str
    fractions: Fractions
    block: Positive
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)]

    @model_validator(mode="after")
    def _patterns_compile(self) -> Self:
        check_pattern("patient", self.patient, "patient")
        check_pattern("number", self.number)
        return self


def check_pattern(key: str, pattern: str | None, group: str | None = None) -> None:
    """Raises ValueError if a pattern is no regular expression, or lacks the named group."""
    try:
        groups = re.compile(pattern or "").groupindex
    except re.error as error:
        raise ValueError(f"{key}: {pattern!r} is no regular expression ({error})") from error
    if group and pattern is not None and group not in groups:
        raise ValueError(f"{key}: {pattern!r} needs a group named (?P<{group}>…)")


class Model(Section):
    backbone: Literal["ResNet50", "VGG16", "InceptionV3", "DenseNet121", "EfficientNetV2B0"]
    pooling: Literal["average", "attention"]


class Augment(Section):
    flip: bool
    rotation: Annotated[float, Field(ge=0, le=180)]
    zoom: Annotated[float, Field(ge=0, lt=1)]
    brightness: Annotated[float, Field(ge=0, lt=1)]
    erase_corner: Share


class Features(Section):
    weights: str
    views: Positive


class TrainHead(Section):
    epochs: Positive
    learning_rate: Rate
    batch_size: Positive
    patience: Positive
    class_weights: bool


class FineTune(Section):
    trainable_from: str
    batch_norm: Literal["frozen", "trained"]
    epochs: Positive
    optimizer: Literal["adam", "adamw"]
    schedule: Literal["constant", "cosine"]
    learning_rate: Rate
    weight_decay: Share
    batch_size: Positive
    patience: Positive
    class_weights: bool


class Calibrate(Section):
    target_sensitivity: Rate
    refer_share: Rate
    unlikeness_quantile: Rate
    components: Annotated[int, Field(gt=0, le=2048)]
    set_error: Rate


class Export(Section):
    int8_images: Positive
    golden_images: Positive
    golden_tolerance: Rate


class Evaluate(Section):
    bootstrap: Annotated[int, Field(ge=100)]
    corner: Rate
    prevalence: Rate
    other_laboratory: str | None
    label_of: Literal["image", "patient"]


class Register(Section):
    name: str
    experiment: str


class Params(Section):
    seed: Annotated[int, Field(ge=0)]
    classes: Annotated[list[ClassParams], Field(min_length=2)]
    wording: Wording
    fetch: Fetch
    demo: Demo
    validate_: Validate = Field(alias="validate")  # pydantic's own method has the plain name
    prepare: Prepare
    model: Model
    augment: Augment
    features: Features
    train_head: TrainHead
    fine_tune: FineTune
    calibrate: Calibrate
    export: Export
    evaluate: Evaluate
    register_: Register = Field(alias="register")

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
