"""Checks the images as they are, and lists those that are usable.

Reads   data/raw/<class key>/*, params: validate, classes
Writes  data/manifest.csv (pipeline.data.manifest), data/validation/results.json, data/validation/data_docs/,
        reports/validation.json (as results.json, with counts where that names files)
Run     python -m pipeline.validate

When a check fails, the reports are still written, for a look at what is wrong, and the manifest is not.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import params, stage
from pipeline.data import expectations, manifest, survey
from pipeline.data.expectations import Finding
from pipeline.data.source import RAW
from pipeline.reporting import data_docs
from pipeline.stage import Problem

FOUND = Path("data/validation")  # names files, and so perhaps patients: it stays where the images are
SUMMARY = Path("reports/validation.json")
SHOWN = 3  # failing items that a message names


def main() -> None:
    recipe = params.load()
    images = survey.mark_copies(survey.look_at_all(RAW, recipe.validate_.max_side))
    usable = images[images["problem"].isna() & images["copy_of"].isna()]
    classes = survey.count_classes(images, usable, [c.key for c in recipe.classes])

    findings = expectations.judge("classes", classes, "class", expectations.class_checks(recipe))
    findings += expectations.judge("images", images, "path", expectations.image_checks(recipe, len(images)))
    write_reports(images, classes, findings)

    print(f"{len(images)} files, {len(usable)} usable images")
    for note, paths in usable.groupby("note")["path"]:
        print(f"{len(paths)} images, such as {paths.iloc[0]}: {note}")
    print(classes.to_string(index=False))
    for finding in findings:
        match finding.observed:
            case [low, high]:
                print(f"{finding.check.expectation.column}: {low:g} to {high:g}")
    if failed := [finding for finding in findings if not finding.success]:
        manifest.MANIFEST_FILE.unlink(missing_ok=True)  # an earlier run's would be taken for this one's
        raise Problem(complaint(failed))
    manifest.write(usable)
    print(f"all {len(findings)} checks passed; wrote {manifest.MANIFEST_FILE} and {FOUND}/data_docs/index.html")


def write_reports(images: pd.DataFrame, classes: pd.DataFrame, findings: list[Finding]) -> None:
    """Writes results.json, its summary and the Data Docs; the same images and params give the same bytes."""
    broken = images.loc[images["problem"].notna(), ["path", "problem"]].rename(columns={"problem": "reason"})
    copies = images.loc[images["copy_of"].notna(), ["path", "copy_of"]]
    results: dict[str, Any] = {
        "success": all(finding.success for finding in findings),
        "classes": dict(zip(classes["class"], classes["images"].tolist(), strict=True)),
        "broken": broken.to_dict("records"),
        "duplicates": copies.to_dict("records"),
        "expectations": [finding.as_json() for finding in findings],
    }
    stage.write_json(FOUND / "results.json", results)
    counts = {name: len(results[name]) for name in ("broken", "duplicates")}
    checks = [finding.as_json() | {"unexpected": len(finding.unexpected)} for finding in findings]
    stage.write_json(SUMMARY, results | counts | {"expectations": checks})
    data_docs.write(FOUND / "data_docs", f"{len(images)} files in {RAW}", classes, findings)


def complaint(failed: list[Finding]) -> str:
    """One plain line for each failed check, with examples and what to do."""
    lines = [f"{RAW} did not pass, so {manifest.MANIFEST_FILE} was not written:"]
    for finding in failed:
        rows, more = finding.unexpected, len(finding.unexpected) - SHOWN
        values = (f"{row['value']:g}" if isinstance(row["value"], float) else row["value"] for row in rows[:SHOWN])
        named = ", ".join(f"{row['item']} ({value})" for row, value in zip(rows, values, strict=False))
        others = f" and {more} more" if more > 0 else ""
        lines.append(f"  {finding.check.wrong}: {named}{others}. {finding.check.remedy}")
    return "\n".join([*lines, f"Everything that was found is in {FOUND}; open data_docs/index.html there."])


if __name__ == "__main__":
    stage.run(main)
