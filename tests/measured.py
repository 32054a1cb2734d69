"""A whole reports/metrics.json, for tests of those who read it."""

import functools
import json
from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import BaseModel

from pipeline.evaluation.abstention import Foreign
from pipeline.evaluation.calibration import OperatingPoint
from pipeline.evaluation.classification import PerClass
from pipeline.evaluation.metrics import Estimate, McNemar
from pipeline.evaluation.report import Report

KEYS = ("benign", "early", "pre", "pro")
SIMPLE: dict[Any, Any] = {dict: {}, list: [], tuple: [2, 2], bool: True, int: 1, float: 0.5, str: "x"}


def plain(values: Mapping[str, float] | None = None) -> dict[str, Any]:
    """As JSON: every estimate is 0.9, but those at the dotted paths of `values`."""
    made: dict[str, Any] = example(Report)
    made["split"]["fewest_test_groups"] = 20
    made["operating_point"] = example(OperatingPoint)
    for name in ("malignant_sensitivity", "malignant_specificity", "malignant_auroc"):
        for precision in ("fp32", "int8"):
            made[precision][name] = example(Estimate)
    proportions = ("balanced_accuracy", "malignant_sensitivity", "malignant_specificity")
    for file in ("fp32", "int8"):
        made[file]["per_class"] = {key: example(PerClass) for key in KEYS}
        made[file]["wilson"] = {name: example(Estimate) for name in (*proportions, *(f"recall_{key}" for key in KEYS))}
        made["abstention"][file]["foreign"] = {kind: example(Foreign) for kind in ("noise", "textures")}
    for sets in made["prediction_sets"].values():
        sets["per_class"] = {key: example(Estimate) for key in KEYS}
    for path, value in (values or {}).items():
        estimate = functools.reduce(lambda part, key: part[key], path.split("."), made)
        estimate.update(value=value, low=min(value, 0.8), high=max(value, 0.95))
    return made


def good(values: Mapping[str, float] | None = None) -> dict[str, float]:
    """Figures that pass the demo's gate where everything else is 0.9, and some in place of them."""
    low = {f"{file}.ece": 0.05 for file in ("fp32", "int8")}
    low |= {f"abstention.{file}.referred": 0.05 for file in ("fp32", "int8")}
    low |= {"audit.cells_masked.balanced_accuracy": 0.25, "audit.corner_of_another.drop": 0.01}
    low |= {"int8_vs_fp32.balanced_accuracy_drop": 0.01}
    return low | dict(values or {})


def report(values: Mapping[str, float] | None = None) -> Report:
    """As those who read the file get it."""
    return Report.model_validate_json(json.dumps(plain(values)))


def example(kind: Any) -> Any:
    """JSON that is valid for a section, an estimate or a simple type; without what may be left out."""
    if kind is Estimate:
        return {"value": 0.9, "low": 0.8, "high": 0.95}
    if kind is McNemar:
        return {"only_a": 3, "only_b": 1, "p": 0.625}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields.items()
        return {name: example(field.annotation) for name, field in fields if field.is_required()}
    return SIMPLE[get_origin(kind) or kind]
