"""The data's own sheet, after Gebru et al. 2021, "Datasheets for Datasets": written by the run, never by hand."""

from typing import Any

import pandas as pd

from pipeline.data import splits
from pipeline.reporting.markdown import SYNTHETIC


def render(source: dict[str, Any], split: pd.DataFrame, size: int) -> str:
    """Writes the sheet as Markdown.

    Args:
        source: what data/source.json holds.
        split: what data/prepared/split.csv holds.
        size: pixels a side, as the model takes them.
    """
    stamp = f"\n**{SYNTHETIC}. The images are rendered; there is no patient.**\n" if source["synthetic"] else ""
    patients = split.loc[split["patient"] != "", "patient"].nunique()
    fetched, used = sum(source["images"].values()), len(split)
    travels = (
        "Small copies of some of them ride in the model file, as pictures of similar cases."
        if source.get("thumbnails")
        else "No image is redistributed with the model."
    )
    unit = f"a patient ({patients} of them)" if patients else "a block of neighbouring file numbers"
    return f"""# Datasheet of the data
{stamp}
## Where it is from

- Origin: {source["origin"]}.
- Licence: {source["licence"]}. {travels}
- Version: {source.get("version") or "none given"}. SHA-256 of the images: `{source["sha256"]}`.
- {_consent(source["synthetic"])}

## What it holds

- {fetched} images were fetched; {used} were usable and of their own kind: an unreadable file or a copy of another is
  dropped (`reports/validation` has the checks).
- An image's class is the folder that it came in. Who decided on it, and by which test, is known only to its origin.
- A group is {unit}: images of one are alike, so a group never lies on two sides of the split.

{_counts(split)}

## What was done to it

- Decoded and squashed to {size} × {size} pixels by the code that also serves; not cropped, colours as they were.
- Where files carry no patient, blocks lie one after the other and one is dropped at each boundary: the embargo.

## What it may be used for

- Research on telling these classes apart, as far as its licence goes.
- Not to say how common a class is, how a model does in another laboratory, or who a patient is.

## What to beware of

- {"Rendered images have no patients and no laboratory." if source["synthetic"] else _patients(patients)}
- Stain, camera and scale bar differ between sessions, and may tell the class: see the shortcut audit in the model card.
- It holds these classes only, and says nothing of how common they are: nobody was taken in as they came.
"""


def _counts(split: pd.DataFrame) -> str:
    names = [name for name in (*splits.SPLITS, splits.EMBARGO) if name in set(split["split"])]
    lines = [f"| images (groups) | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for key, rows in split.groupby("class", sort=False):
        parts = [rows.loc[rows["split"] == name, "group"] for name in names]
        lines.append(f"| {key} | {' | '.join(f'{len(part)} ({part.nunique()})' for part in parts)} |")
    return "\n".join(lines)


def _consent(synthetic: bool) -> str:
    if synthetic:
        return "Nobody was asked for consent, since there is nobody: every image is rendered."
    return "How patients were chosen and asked for consent, and who approved of it, is known only to its origin."


def _patients(patients: int) -> str:
    return (
        f"Few patients: {patients}."
        if patients
        else "The patients are not known: one may lie on both sides of the split."
    )
