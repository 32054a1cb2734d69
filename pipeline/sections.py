"""The sections of `params.yaml`, a class each, whose fields are its keys. params.yaml itself says what each is for."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


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
    patients: PositiveInt
    images_per_patient: PositiveInt
    size: Annotated[int, Field(ge=32, le=512)]


class Validate(Section):
    min_side: PositiveInt
    max_side: PositiveInt
    min_images_per_class: PositiveInt
    max_imbalance: Annotated[float, Field(ge=1)]
    brightness: tuple[float, float]
    min_sharpness: NonNegativeFloat
    max_broken: NonNegativeInt


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
    block: PositiveInt
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
    last_layer: Literal[8, 16] | str | None
    pooling: Literal["average", "moments", "attention"]
    head: Literal["paper", "linear"]


class Estimate(Section):
    folds: Annotated[list[NonNegativeInt], Field(max_length=20)]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]

    @model_validator(mode="after")
    def _folds_are_numbered(self) -> Self:
        if self.folds and (len(self.folds) < 2 or self.folds != list(range(len(self.folds)))):
            raise ValueError(
                f"folds: two or more, numbered from 0, as [0, 1, 2]; or [] for one split, not {self.folds}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: one repeats in {self.seeds}")
        return self


class Augment(Section):
    flip: bool
    rotation: Annotated[float, Field(ge=0, le=180)]
    zoom: Annotated[float, Field(ge=0, lt=1)]
    brightness: Annotated[float, Field(ge=0, lt=1)]
    stain: Annotated[float, Field(ge=0, le=2)]
    erase_corner: Share
    scale_bar: Share


class Features(Section):
    weights: str
    views: PositiveInt


class TrainHead(Section):
    epochs: PositiveInt
    schedule: Literal["constant", "cosine"]
    learning_rate: Rate
    batch_size: PositiveInt
    patience: PositiveInt
    class_weights: bool


class FineTune(Section):
    trainable_from: str
    batch_norm: Literal["frozen", "trained"]
    epochs: NonNegativeInt
    optimizer: Literal["adam", "adamw"]
    schedule: Literal["constant", "cosine"]
    learning_rate: Rate
    weight_decay: Share
    batch_size: PositiveInt
    patience: PositiveInt
    class_weights: bool


class Calibrate(Section):
    target_sensitivity: Rate
    refer_share: Rate
    unlikeness_quantile: Rate
    components: Annotated[int, Field(gt=0, le=2048)]
    set_error: Rate


class Export(Section):
    int8_images: PositiveInt
    golden_images: PositiveInt
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
