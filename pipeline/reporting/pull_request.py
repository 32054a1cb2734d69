"""What a pull request is told of a training: the verdict, what changed against another revision, curves, confusions.

Reads:  reports/ (registration.json, metrics.json, plots), dvc, git
Writes: reports/comment.md, in GitHub's Markdown
Run:    python -m pipeline.reporting.pull_request [--base origin/main]
"""

import argparse
import csv
import json
import subprocess
from collections import Counter
from itertools import accumulate
from pathlib import Path

from leukdetect import page
from pipeline import stage
from pipeline.evaluation import report
from pipeline.stage import Problem

TEMPLATE = Path(__file__).with_name("comment.md.jinja")
REPORTS = Path("reports")
COMMENT = REPORTS / "comment.md"
MOST_CHARACTERS = 25_000  # of a table; GitHub takes 65,536 in all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="HEAD", help="the revision to compare with")
    base = parser.parse_args().base
    judged = REPORTS / "registration.json"
    counts = Counter((row["actual"], row["predicted"]) for row in _rows("confusion.csv"))
    text = page.render(
        TEMPLATE,
        registration=json.loads(judged.read_text()) if judged.is_file() else None,
        synthetic=judged.is_file() and report.read().synthetic,
        base=base,
        changes={what: _within(_changes(what, base)) for what in ("params", "metrics")},
        history=_rows("history.csv"),
        classes=list(dict.fromkeys(actual for actual, _ in counts)),
        counts=counts,
    )
    with stage.writing(COMMENT) as temporary:
        temporary.write_text(text)


def _changes(what: str, base: str) -> list[str]:
    """The lines of a table, under a heading of two."""
    done = subprocess.run(["dvc", what, "diff", "--md", base], capture_output=True, text=True)
    if done.returncode != 0:
        raise Problem(f"`dvc {what} diff {base}` says: {done.stderr.strip()}")
    return [line for line in done.stdout.splitlines() if line]


def _within(lines: list[str]) -> tuple[int, list[str], int]:
    """How many rows a table has, the lines that a comment has room for, and how many rows it has none for."""
    ends = accumulate(len(line) + 1 for line in lines)
    shown = [line for line, end in zip(lines, ends, strict=True) if end <= MOST_CHARACTERS]
    return max(len(lines) - 2, 0), shown, len(lines) - len(shown)


def _rows(name: str) -> list[dict[str, str]]:
    path = REPORTS / "plots" / name
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    stage.guard(main)
