"""What the data must be like, as Great Expectations; no other module imports that library.

A checkpoint holds a suite against a table. Only the renderers are not of the library's public interface, whose own Data
Docs need a network (docs/decisions, 7); tests/pipeline/data/test_expectations.py says so if an upgrade moves them.

Two tables are judged: `images`, a row a file (what `pipeline.data.survey` found), and `classes`, a row a declared class
(how many usable images it has). Each check names the files or the classes that fail it.
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
        return {
            "table": self.table,
            "rule": self.check.rule,
            "expectation": self.check.expectation.expectation_type,
            "kwargs": self.check.expectation.configuration.kwargs,
            "success": self.success,
            "observed": self.observed,
            "unexpected": self.unexpected,
        }


def image_checks(params: Params, count: int) -> list[Check]:
    """The checks of the `images` table of `count` rows."""
    bounds = params.validate_
    darkest, brightest = bounds.brightness
    keys = [c.key for c in params.classes]
    change = "Replace or remove them, or change validate.{} and say why.".format
    return [
        Check(
            f"Readable as an image; at most {bounds.max_broken} may not be (validate.max_broken)",
            "cannot be read as an image",
            "Replace or remove them, or raise validate.max_broken: unreadable files are dropped.",
            # Great Expectations allows failures as a share only, so this many as a share of all.
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
            change("min_side"),
            gxe.ExpectColumnValuesToBeBetween(column="shorter_side", min_value=bounds.min_side),
        ),
        Check(
            f"Longer side at most {bounds.max_side} px (validate.max_side)",
            f"too large (longer side above {bounds.max_side} px; their pixels were not read)",
            change("max_side"),
            gxe.ExpectColumnValuesToBeBetween(column="longer_side", max_value=bounds.max_side),
        ),
        Check(
            f"Brightness (mean luma, 0 to 255) from {darkest:g} to {brightest:g} (validate.brightness)",
            f"too dark or too bright (mean luma outside {darkest:g} to {brightest:g})",
            change("brightness"),
            gxe.ExpectColumnValuesToBeBetween(column="brightness", min_value=darkest, max_value=brightest),
        ),
        Check(
            f"Sharpness (variance of the Laplacian) at least {bounds.min_sharpness:g} (validate.min_sharpness)",
            f"empty or out of focus (sharpness below {bounds.min_sharpness:g})",
            change("min_sharpness"),
            gxe.ExpectColumnValuesToBeBetween(column="sharpness", min_value=bounds.min_sharpness),
        ),
    ]


def class_checks(params: Params) -> list[Check]:
    """The checks of the `classes` table."""
    fewest, imbalance = params.validate_.min_images_per_class, params.validate_.max_imbalance
    return [
        Check(
            f"At least {fewest} usable images a class (validate.min_images_per_class)",
            f"fewer than {fewest} usable images in the class",
            "Add images, or lower validate.min_images_per_class and say why.",
            gxe.ExpectColumnValuesToBeBetween(column="images", min_value=fewest),
        ),
        Check(
            f"Largest class at most {imbalance:g} times each other (validate.max_imbalance)",
            f"the largest class has more than {imbalance:g} times this class's images",
            "Add images of that class, or raise validate.max_imbalance and say why.",
            gxe.ExpectColumnValuesToBeBetween(column="imbalance", max_value=imbalance),
        ),
    ]


def judge(name: str, table: pd.DataFrame, item: str, checks: list[Check]) -> list[Finding]:
    """Holds a table, called `name` in the reports, against checks of its columns; the column `item` names a row."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("raw").add_dataframe_asset(name)
    suite = context.suites.add(gx.ExpectationSuite(name, expectations=[check.expectation for check in checks]))
    whole = asset.add_batch_definition_whole_dataframe("all")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=whole, suite=suite))
    result_format = {
        "result_format": "COMPLETE",
        "unexpected_index_column_names": [item],
        "return_unexpected_index_query": False,
    }
    checkpoint = gx.Checkpoint(name=name, validation_definitions=[definition], result_format=result_format)
    (run,) = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table}).run_results.values()
    results = {result.expectation_config.id: result for result in run.results}
    findings = []
    for check in checks:
        result = results[check.expectation.id]
        info = result.exception_info
        for each in [info] if "raised_exception" in info else info.values():  # or one for each of its metrics
            if each["raised_exception"]:
                raise RuntimeError(f"{check.rule}: {each['exception_message']}")
        column = check.expectation.column
        failing = result.to_json_dict()["result"]["unexpected_index_list"]
        unexpected = [{"item": row[item], "value": row[column]} for row in failing]
        observed = _observed(table[column], check.expectation)
        findings.append(Finding(check, name, bool(result.success), observed, unexpected, _render(result, item)))
    return findings


def _observed(values: pd.Series, expectation: gxe.Expectation) -> Any:
    if isinstance(expectation, gxe.ExpectColumnValuesToBeNull):
        return int(values.count())
    if not values.count():
        return None
    if pd.api.types.is_numeric_dtype(values):
        return [values.min().item(), values.max().item()]
    return values.value_counts().sort_index().to_dict()


def _render(result: Any, item: str) -> str:
    # File names come from outside, and the library puts the cells of its tables into the page as they are.
    result.result = _escaped(result.result)
    # The Null expectation leaves this out; rows would be shown as raw dicts.
    result.result["unexpected_index_column_names"] = [item]
    block = ValidationResultsTableContentBlockRenderer.render([result], include_column_name=True)
    return str(DefaultJinjaComponentView().render({"content_block": block.to_json_dict()}))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value
