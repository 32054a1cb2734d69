"""What a model file promises: the JSON that rides in the ONNX metadata under the key `leukdetect`.

The graph: input `image` uint8 [N, S, S, 3] RGB; outputs `probabilities` float32 [N, C] (calibrated),
`embedding` [N, D], `unlikeness` [N] (1.0 is the referral threshold) and `cam` [N, C, h, w]; where the model weighs the
positions of its last maps, `attention` [N, h, w] too, these weights.
The same promise as a JSON Schema, for other languages: `contract.schema.json`, beside this file.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    import onnxruntime

METADATA_KEY = "leukdetect"
# The file names in a registered version's artifacts/, and the tags that hold both model files' hashes.
FILES = {"fp32": "leukdetect.onnx", "int8": "leukdetect.int8.onnx"}
SHA256_TAGS = {"fp32": "leukdetect.sha256", "int8": "leukdetect.int8_sha256"}
METRICS_FILE, MODEL_CARD_FILE = "metrics.json", "model_card.md"
REPORT_FILE, DATASHEET_FILE = "report.html", "datasheet.html"
SCHEMA_FILE = Path(__file__).with_name("contract.schema.json")
OUTPUTS = ("probabilities", "embedding", "unlikeness", "cam")
ATTENTION = "attention"
ANSWER = ("probabilities", "unlikeness")  # the outputs that a prediction needs; the graph skips the others
OBSERVED = (*ANSWER, "embedding")  # the drift window needs the embedding too, which is computed on the way
QUANTILES = 21  # 0, 5, … 100 %
DISCLAIMER = (
    "For research and education only. Not a medical device. Every answer must be reviewed by a "
    "qualified haematologist, and a subtype confirmed by flow cytometry."
)

Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ContractError(ValueError):
    """A model file does not keep, or does not carry, the contract; the message says where."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Class(_Frozen):
    """One of the model's outputs, in output order."""

    key: str = Field(pattern="^[a-z][a-z0-9_]*$", description="the name in data, metrics and APIs")
    label: str = Field(description="the name for people")
    malignant: bool


Sentence = Annotated[str, Field(pattern=r"\{label\}")]


class Wording(_Frozen):
    """What is said of the disease. The defaults are what files from before version 3 are about."""

    subject: str = Field(
        default="Acute lymphoblastic leukaemia on peripheral blood smears",
        description="what the model is for",
    )
    malignant: Sentence = Field(
        default="Resembles {label}; confirm by flow cytometry.", description="of a malignant class that is reported"
    )
    other: Sentence = Field(
        default="Resembles {label}; this alone does not exclude leukaemia.",
        description="of another class that is reported",
    )


class Decode(_Frozen):
    """How bytes become the graph's input."""

    size: int = Field(gt=0, description="S: height and width in pixels")
    resize: Literal["squash, antialiased bilinear (Pillow)"] = "squash, antialiased bilinear (Pillow)"
    colour: Literal["RGB"] = "RGB"
    behaviour: Sha256 = Field(
        description="leukdetect.images.behaviour(size) where the model was built; version 1 is served, with a warning"
    )
    scaled: bool = Field(
        default=False,
        description="JPEGs are decoded to no less than twice the size (DCT scaling), not to their own; since version 4",
    )


class Thresholds(_Frozen):
    """When to call malignant, and when to decline to answer. Chosen on validation images, or out of fold."""

    malignant: Share | None = Field(
        description="operating point: malignant if P(malignant) is at least this; null where not both kinds are known"
    )
    confidence: Share = Field(description="refer if the highest probability is below this")
    brightness: tuple[float, float] = Field(description="refer outside; mean luma at S×S, 0..255")
    min_sharpness: float = Field(ge=0, description="refer below; variance of the Laplacian at S×S")
    min_stain: float = Field(
        default=0,
        ge=0,
        description="refer below: no stained nucleus; leukdetect.images.stain. 0 in version 1: refers none",
    )


class PredictionSets(_Frozen):
    """Class-conditional (Mondrian) split conformal sets, from answers to validation images: this very file's,
    or out of fold, by trainings like its own.

    A class cannot be excluded if its probability is at least its threshold. The coverage holds for images that are
    exchangeable with the validation images of their class; another patient's, session's or laboratory's need not be.
    """

    error: float = Field(gt=0, lt=1, description="share of a class's images whose set may lack the class, aimed at")
    thresholds: list[Share] = Field(description="in class order; 0 where there are too few images: never excluded")
    images: list[int] = Field(description="validation images of each class, in class order")


class Golden(_Frozen):
    """An image and this very file's answer to it, where it was built."""

    image: str = Field(description="a JPEG file, base64")
    probabilities: list[Share]
    unlikeness: float


class Scalar(_Frozen):
    """How one number was distributed over the validation images."""

    quantiles: list[float] = Field(min_length=QUANTILES, max_length=QUANTILES, description="0, 5, … 100 %")
    shares: list[Share] = Field(
        min_length=QUANTILES + 1,
        max_length=QUANTILES + 1,
        description="of images below the first quantile, from each to the next, and from the last on",
    )


class Window(_Frozen):
    """When so many images in a row have drifted."""

    images: int = Field(gt=0)
    thresholds: dict[str, dict[str, float]] = Field(description="by signal and test: drift is beyond it")


class Reference(_Frozen):
    """What drift is measured against: this very file's answers to validation images, or those out of fold.

    See leukdetect/drift.py."""

    images: int = Field(gt=0)
    groups: int = Field(gt=0, description="patients or sessions that these images come from")
    false_alarms: Share = Field(description="share of windows from the same source in which any test raises an alarm")
    scalars: dict[str, Scalar]
    class_shares: list[Share] = Field(description="of predicted classes, in class order")
    bandwidth: float = Field(gt=0, description="of the kernel on embeddings of length 1")
    embedding: list[float] = Field(description="mean of the embeddings' random features")
    sides: list[float] | None = Field(
        default=None,
        min_length=QUANTILES,
        max_length=QUANTILES,
        description="of the validation files' pixels, √(width × height): 0, 5, … 100 %; null before version 4",
    )
    windows: list[Window] = Field(min_length=1, description="the smallest first; below it nothing is said")


class Provenance(_Frozen):
    """Where the file comes from."""

    source: str = Field(description="the data's origin, as data/source.json names it, and the pretrained base's")
    synthetic: bool = Field(description="trained on rendered images: no clinical meaning at all")
    data_sha256: Sha256
    params_sha256: Sha256
    git_commit: str
    mlflow_run: str
    created: str = Field(description="ISO 8601, UTC")


class Contract(_Frozen):
    """The whole promise of one model file."""

    version: Literal[1, 2, 3, 4] = Field(
        4,
        description="1: from before there were prediction sets; 2: wording; 3: scaled decoding. All are still served",
    )
    name: str
    precision: Literal["fp32", "int8"]
    classes: list[Class] = Field(min_length=2)
    decode: Decode
    temperature: float = Field(gt=0, description="already inside the graph; here for the record")
    target_sensitivity: Share | None = Field(description="what thresholds.malignant was chosen for")
    thresholds: Thresholds
    prediction_sets: PredictionSets | None = Field(None, description="null in version 1 only")
    reference: Reference
    golden: list[Golden] = Field(min_length=1)
    golden_tolerance: float = Field(gt=0, description="largest difference in a probability to accept")
    validation: dict[str, float] = Field(description="metrics on validation images, or out of fold")
    provenance: Provenance
    wording: Wording = Wording()
    intended_use: str
    disclaimer: str = DISCLAIMER

    @model_validator(mode="after")
    def _consistent(self) -> "Contract":
        keys = [c.key for c in self.classes]
        if len(set(keys)) != len(keys):
            raise ValueError(f"class keys repeat: {keys}")
        if self.tells_malignancy != (self.thresholds.malignant is not None):
            raise ValueError("thresholds.malignant is for classes of which some are malignant and some are not")
        if len(self.reference.class_shares) != len(keys):
            raise ValueError(f"the reference has {len(self.reference.class_shares)} shares for {len(keys)} classes")
        if (self.prediction_sets is None) != (self.version == 1):
            raise ValueError("version 1 has no prediction_sets, and later ones have")
        if self.prediction_sets and {len(self.prediction_sets.thresholds), len(self.prediction_sets.images)} != {
            len(keys)
        }:
            raise ValueError(f"prediction_sets do not have a threshold and a number of images for {len(keys)} classes")
        for golden in self.golden:
            if len(golden.probabilities) != len(keys):
                raise ValueError(
                    f"a golden answer has {len(golden.probabilities)} probabilities for {len(keys)} classes"
                )
        return self

    @property
    def tells_malignancy(self) -> bool:
        """Some classes are malignant and some are not: P(malignant) means something."""
        return {each.malignant for each in self.classes} == {True, False}

    def index_of(self, key: str) -> int:
        """The index of the class with this key. Raises KeyError: there is none; the message names the classes."""
        keys = [each.key for each in self.classes]
        if key not in keys:
            raise KeyError(f"the model's classes are {', '.join(keys)}, and {key!r} is none of them")
        return keys.index(key)


def metadata_of(session: "onnxruntime.InferenceSession") -> dict[str, str]:
    """An open ONNX file's metadata. Raises ContractError: it is no text."""
    try:
        return dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise ContractError("the ONNX file's metadata is not UTF-8") from error


def parse(metadata: dict[str, str]) -> Contract:
    """Reads the contract from an ONNX file's metadata (`session.get_modelmeta().custom_metadata_map`).

    Raises ContractError: no contract, or one that breaks the schema; names the first field that does.
    """
    if METADATA_KEY not in metadata:
        raise ContractError(
            f"the ONNX file carries no '{METADATA_KEY}' metadata: it was not made by `python -m pipeline.export`"
        )
    try:
        return Contract.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "contract"
        raise ContractError(f"the model file's contract is broken at {where}: {first['msg']}") from error
