"""Great Expectations' Data Docs as one page that needs no network and is the same for the same data.

The library's own site takes its styles, its icons and the script that fills its index from seven other hosts, so that
without the internet the index is blank; it also has the time in file names. The results below are rendered
by the library; only the page around them is ours.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from leukdetect import page
from pipeline import stage
from pipeline.data.expectations import Finding

PAGE = Path(__file__).with_name("data_docs.html.jinja")


def write(folder: Path, subject: str, classes: pd.DataFrame, findings: list[Finding]) -> None:
    """Writes `folder`/index.html: what was checked, in a few words, the counts of each class, and what was found."""
    counts = classes.astype(object).where(classes.notna(), "–")
    text = page.render(PAGE, subject=subject, classes=counts, findings=findings, observed=_observed)
    with stage.writing(folder) as temporary:
        temporary.mkdir()
        (temporary / "index.html").write_text(text, encoding="utf-8")


def _observed(value: Any) -> str:
    match value:
        case [low, high]:
            return f"{low:g} to {high:g}"
        case dict(counts):
            return ", ".join(f"{each} {count}" for each, count in counts.items())
    return "nothing" if value is None else str(value)
