"""Checks the images as they are, and lists those that are usable.

Reads   data/raw/<class key>/*, params: validate, classes
Writes  data/manifest.csv (pipeline.data.manifest), reports/validation/results.json, reports/validation/data_docs/
Run     python -m pipeline.validate

When a check fails, the reports are still written, for a look at what is wrong, and the manifest is not.
"""

import os
from dataclasses import asdict
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pandas as pd

from pipeline import params, stage
from pipeline.data import expectations, manifest
from pipeline.data.expectations import Finding
from pipeline.data.source import RAW
from pipeline.reporting import data_docs
from pipeline.stage import Problem

REPORTS = Path("reports/validation")
SHOWN = 3  # failing items that a message names


def main() -> None:
    recipe = params.load()
    keys = [c.key for c in recipe.classes]
    images = mark_copies(look_at_all(RAW, recipe.validate_.max_side))
    usable = images[images["problem"].isna() & images["copy_of"].isna()]
    classes = count_classes(images, usable, keys)

    findings = expectations.judge("classes", classes, "class", expectations.class_checks(recipe))
    findings += expectations.judge("images", images, "path", expectations.image_checks(recipe, len(images)))
    write_reports(images, classes, findings)

    print(f"{len(images)} files, {len(usable)} usable images")
    print(classes.to_string(index=False))
    for finding in findings:
        match finding.observed:
            case [low, high]:
                print(f"{finding.check.expectation.column}: {low:g} to {high:g}")
    if failed := [finding for finding in findings if not finding.success]:
        manifest.MANIFEST_FILE.unlink(missing_ok=True)  # one of an earlier run would be taken for this one's
        raise Problem(complaint(failed))
    manifest.write(usable)
    print(f"all {len(findings)} checks passed; wrote {manifest.MANIFEST_FILE} and {REPORTS}/data_docs/index.html")


def look_at_all(raw: Path, max_side: int) -> pd.DataFrame:
    """A row for every file under `raw`, sorted by path: what `manifest.look` found, and its class.

    Raises:
        Problem: there is no file.
    """
    paths = sorted(path for path in raw.rglob("*") if path.is_file())
    if not paths:
        raise Problem(f"{raw} holds no images; `dvc repro fetch` puts them there")
    # Threads, since reading, decoding and NumPy all let go of Python's lock.
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.imap(lambda path: manifest.look(path, max_side), paths)
        facts = [asdict(fact) for fact in stage.progress(looks, "looking", total=len(paths))]
    table = pd.DataFrame(facts)
    names = [path.relative_to(raw) for path in paths]
    table.insert(0, "path", [name.as_posix() for name in names])
    table.insert(1, "class", [name.parts[0] if len(name.parts) > 1 else "(none)" for name in names])
    for side in ("width", "height"):
        table[side] = table[side].astype("Int64")  # whole numbers in the manifest, though unreadable files have none
    sides = table[["width", "height"]].astype(float)
    table = table.assign(shorter_side=sides.min(axis=1), longer_side=sides.max(axis=1))
    return table.sort_values("path", ignore_index=True)


def mark_copies(images: pd.DataFrame) -> pd.DataFrame:
    """Adds what the bytes of readable files say, for a table that is sorted by path.

    `copy_of` is the first file of the same class with the same bytes (None for that file itself);
    `also_under` is the first file with the same bytes in another class.
    """
    readable = images[images["problem"].isna()]
    first = readable.groupby(["class", "sha256"])["path"].transform("first")
    copy_of = first.where(first != readable["path"])

    firsts = readable[copy_of.isna()]
    twins = firsts.merge(firsts, on="sha256", suffixes=("", "_elsewhere"))
    twins = twins[twins["class"] != twins["class_elsewhere"]]
    elsewhere = twins.groupby(["class", "sha256"])["path_elsewhere"].first()
    also_under = readable.join(elsewhere, on=["class", "sha256"])["path_elsewhere"]
    return images.assign(copy_of=copy_of, also_under=also_under)


def count_classes(images: pd.DataFrame, usable: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row for each declared class, in their order: usable images, unreadable files, copies, imbalance.

    `imbalance` is the size of the largest class ÷ the size of this one; none for a class without images.
    """
    count = usable["class"].value_counts().reindex(keys, fill_value=0)
    columns = {
        "images": count,
        "unreadable": images[images["problem"].notna()]["class"].value_counts().reindex(keys, fill_value=0),
        "copies": images[images["copy_of"].notna()]["class"].value_counts().reindex(keys, fill_value=0),
        "imbalance": (count.max() / count.where(count > 0)).round(4),
    }
    return pd.DataFrame(columns).rename_axis("class").reset_index()


def write_reports(images: pd.DataFrame, classes: pd.DataFrame, findings: list[Finding]) -> None:
    """Writes results.json and the Data Docs; the same images and params give the same bytes."""
    broken = images[images["problem"].notna()]
    copies = images[images["copy_of"].notna()]
    results = {
        "success": all(finding.success for finding in findings),
        "classes": dict(zip(classes["class"], classes["images"].tolist(), strict=True)),
        "broken": [{"path": row.path, "reason": row.problem} for row in broken.itertuples()],
        "duplicates": [{"path": row.path, "copy_of": row.copy_of} for row in copies.itertuples()],
        "expectations": [finding.as_json() for finding in findings],
    }
    stage.write_json(REPORTS / "results.json", results)
    data_docs.write(REPORTS / "data_docs", f"{len(images)} files in {RAW}", classes, findings)


def complaint(failed: list[Finding]) -> str:
    """One plain line for each failed check, with examples and what to do."""
    lines = [f"{RAW} did not pass, so {manifest.MANIFEST_FILE} was not written:"]
    for finding in failed:
        named = ", ".join(f"{row['item']} ({_short(row['value'])})" for row in finding.unexpected[:SHOWN])
        more = len(finding.unexpected) - SHOWN
        lines.append(
            f"  {finding.check.wrong}: {named}{f' and {more} more' if more > 0 else ''}. {finding.check.remedy}"
        )
    lines.append(f"Everything that was found is in {REPORTS}; open data_docs/index.html there.")
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    stage.run(main)
