"""What the data must be like, as Great Expectations; all that knows that library is here.

Two tables are judged: `images`, a row a file (what `pipeline.data.survey.look` found, and which files have
the same bytes), and `classes`, a row a declared class (how many usable images it has). Each check names the files or
the classes that fail it, so the facts about the whole data set are checked row by row too.
"""

import warnings
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from leukdetect.images import FORMATS
from pipeline.params import Params

with warnings.catch_warnings():
    # It imports sre_constants, which Python 3.11 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.render.renderer.content_block import ValidationResultsTableContentBlockRenderer
    from great_expectations.render.view import DefaultJinjaComponentView


@dataclass(frozen=True)
class Check:
    """One expectation, and how to speak of it."""

    rule: str  # what must hold, for the report's heading
    wrong: str  # what is wrong with the items that break it
    remedy: str
    expectation: gxe.Expectation


@dataclass(frozen=True)
class Finding:
    """What came of a check."""

    check: Check
    table: str
    success: bool
    observed: Any  # [smallest, largest] of numbers, else how often each value occurs; for "none" rules, how many
    unexpected: list[dict[str, Any]]  # the failing rows: `item` (a path or a class) and `value`
    html: str  # the result as Great Expectations renders it for Data Docs

    def as_json(self) -> dict[str, Any]:
        """The finding for results.json."""
        bounds = self.check.expectation.configuration.kwargs
        return {
            "table": self.table,
            "rule": self.check.rule,
            "expectation": self.check.expectation.expectation_type,
            "kwargs": bounds,
            "success": self.success,
            "observed": self.observed,
            "unexpected": self.unexpected,
        }


def image_checks(params: Params, count: int) -> list[Check]:
    """The checks of the `images` table of `count` rows."""
    bounds = params.validate_
    darkest, brightest = bounds.brightness
    keys = [c.key for c in params.classes]
    return [
        Check(
            f"Readable as an image; at most {bounds.max_broken} may not be (validate.max_broken)",
            "cannot be read as an image",
            "Replace or remove them, or raise validate.max_broken: unreadable files are dropped.",
            # The one way to allow so many failures and still name them: a share that is exact.
            gxe.ExpectColumnValuesToBeNull(column="problem", mostly=max(count - bounds.max_broken, 0) / count),
        ),
        Check(
            f"Format is one of {', '.join(FORMATS)}",
            f"not one of {', '.join(FORMATS)}",
            "Convert or remove them.",
            gxe.ExpectColumnValuesToBeInSet(column="format", value_set=list(FORMATS)),
        ),
        Check(
            f"Class is one of those declared (classes): {', '.join(keys)}",
            f"in a folder that is none of the declared classes ({', '.join(keys)})",
            "Move or remove the folder, or declare the class in params.yaml under classes.",
            gxe.ExpectColumnValuesToBeInSet(column="class", value_set=keys),
        ),
        Check(
            "No image stands under two labels with the same bytes",
            "the same bytes under two labels",
            "Find out which label is right and remove the other copy.",
            gxe.ExpectColumnValuesToBeNull(column="also_under"),
        ),
        Check(
            "Copies within a class: reported and dropped; the first by name stays",
            "copies within a class",
            "",
            gxe.ExpectColumnValuesToBeNull(column="copy_of", mostly=0),
        ),
        Check(
            f"Shorter side at least {bounds.min_side} px (validate.min_side)",
            f"too small (shorter side below {bounds.min_side} px)",
            _change("min_side"),
            gxe.ExpectColumnValuesToBeBetween(column="shorter_side", min_value=bounds.min_side),
        ),
        Check(
            f"Longer side at most {bounds.max_side} px (validate.max_side)",
            f"too large (longer side above {bounds.max_side} px; their pixels were not read)",
            _change("max_side"),
            gxe.ExpectColumnValuesToBeBetween(column="longer_side", max_value=bounds.max_side),
        ),
        Check(
            f"Brightness (mean luma, 0 to 255) from {darkest:g} to {brightest:g} (validate.brightness)",
            f"too dark or too bright (mean luma outside {darkest:g} to {brightest:g})",
            _change("brightness"),
            gxe.ExpectColumnValuesToBeBetween(column="brightness", min_value=darkest, max_value=brightest),
        ),
        Check(
            f"Sharpness (variance of the Laplacian) at least {bounds.min_sharpness:g} (validate.min_sharpness)",
            f"empty or out of focus (sharpness below {bounds.min_sharpness:g})",
            _change("min_sharpness"),
            gxe.ExpectColumnValuesToBeBetween(column="sharpness", min_value=bounds.min_sharpness),
        ),
    ]


def class_checks(params: Params) -> list[Check]:
    """The checks of the `classes` table."""
    bounds = params.validate_
    return [
        Check(
            f"At least {bounds.min_images_per_class} usable images a class (validate.min_images_per_class)",
            f"fewer than {bounds.min_images_per_class} usable images in the class",
            "Add images, or lower validate.min_images_per_class and say why.",
            gxe.ExpectColumnValuesToBeBetween(column="images", min_value=bounds.min_images_per_class),
        ),
        Check(
            f"Largest class at most {bounds.max_imbalance:g} times each other (validate.max_imbalance)",
            f"the largest class has more than {bounds.max_imbalance:g} times this class's images",
            "Add images of that class, or raise validate.max_imbalance and say why.",
            gxe.ExpectColumnValuesToBeBetween(column="imbalance", max_value=bounds.max_imbalance),
        ),
    ]


def judge(name: str, table: pd.DataFrame, item: str, checks: list[Check]) -> list[Finding]:
    """Holds a table, called `name` in the reports, against checks of its columns; the column `item` names a row."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("raw").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    result_format = {
        "result_format": "COMPLETE",
        "unexpected_index_column_names": [item],
        "return_unexpected_index_query": False,
    }
    findings = []
    for check in checks:
        result = batch.validate(check.expectation, result_format=result_format)
        if result.exception_info["raised_exception"]:
            raise RuntimeError(f"{check.rule}: {result.exception_info['exception_message']}")
        column = check.expectation.column
        unexpected = [
            {"item": row[item], "value": _plain(row[column])} for row in result.result["unexpected_index_list"]
        ]
        observed = _observed(table[column], check.expectation)
        findings.append(Finding(check, name, bool(result.success), observed, unexpected, _render(result, item)))
    return findings


def _change(knob: str) -> str:
    return f"Replace or remove them, or change validate.{knob} and say why."


def _observed(values: pd.Series, expectation: gxe.Expectation) -> Any:
    if isinstance(expectation, gxe.ExpectColumnValuesToBeNull):
        return int(values.notna().sum())
    values = values.dropna()
    if values.empty:
        return None
    if pd.api.types.is_numeric_dtype(values):
        return [_plain(values.min()), _plain(values.max())]
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python number that JSON knows."""
    return value.item() if hasattr(value, "item") else value


def _render(result: Any, item: str) -> str:
    # File names come from outside, and the library puts the cells of its tables into the page as they are.
    result.result = _escaped(result.result)
    # The Null expectation leaves this out; rows would be shown as raw dicts.
    result.result["unexpected_index_column_names"] = [item]
    block = ValidationResultsTableContentBlockRenderer.render([result], include_column_name=True)
    return str(DefaultJinjaComponentView().render({"content_block": block.to_json_dict()}))


def _escaped(value: Any) -> Any:
    match value:
        case str():
            return escape(value)
        case list():
            return [_escaped(item) for item in value]
        case dict():
            return {key: _escaped(item) for key, item in value.items()}
    return value
