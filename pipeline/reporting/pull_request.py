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
from pathlib import Path
from typing import Any

from pipeline import stage
from pipeline.evaluation import report
from pipeline.stage import Problem

REPORTS = Path("reports")
COMMENT = REPORTS / "comment.md"
MOST_CHARACTERS = 65_000  # GitHub takes 65,536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="HEAD", help="the revision to compare with")
    base = parser.parse_args().base
    text = "\n".join([*_verdict(), *_changes(base), *_curves(), *_confusions()])
    with stage.writing(COMMENT) as temporary:
        temporary.write_text(text[:MOST_CHARACTERS] + "\n")


def _verdict() -> list[str]:
    path = REPORTS / "registration.json"
    if not path.is_file():
        return ["## Training: the gate was not reached", "", "The log of the run says why.", ""]
    registration: dict[str, Any] = json.loads(path.read_text())
    name = f"{registration['name']} version {registration['version']}"
    outcome = {"passed": "passed the gate", "failed": "was refused by the gate"}.get(registration["gate"], "not gated")
    lines = [f"## Training: {name} {outcome}", "", registration["note"], ""]
    if report.read().synthetic:
        lines += ["Trained on rendered images: these numbers have no clinical meaning.", ""]
    if registration["checks"]:
        lines += ["| check | value | bound | |", "|---|---|---|---|"]
    for check in registration["checks"]:
        value = "–" if check["value"] is None else f"{check['value']:.4f}"
        lines.append(f"| {check['name']} | {value} | {check['bound']} | {'ok' if check['passed'] else '**FAILS**'} |")
    if registration["gate"] == "passed":
        lines += ["", f"To deploy it: `gh workflow run deploy.yml -f version={registration['version']}`"]
    return [*lines, ""]


def _changes(base: str) -> list[str]:
    lines = []
    for what in ("params", "metrics"):
        done = subprocess.run(["dvc", what, "diff", "--md", base], capture_output=True, text=True)
        if done.returncode != 0:
            raise Problem(f"`dvc {what} diff {base}` says: {done.stderr.strip()}")
        table = [line for line in done.stdout.splitlines() if line]
        changed = max(0, len(table) - 2)  # under a heading of two lines, which is there without a change too
        lines += [f"<details><summary>{what}: {changed} changed since {base}</summary>", ""]
        lines += [*(table if changed else ["None."]), "", "</details>", ""]
    return lines


def _curves() -> list[str]:
    """A chart that GitHub draws itself: a picture would have to be published somewhere first."""
    rows = _rows("history.csv")
    if not rows:
        return []
    lines = [f"  line [{', '.join(row[column] for row in rows)}]" for column in ("loss", "val_loss")]
    colours = '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#d98c00, #1f6feb"}}}}%%'
    title = '  title "Loss in both phases: training orange, validation blue"'
    return ["```mermaid", colours, "xychart-beta", title, f'  x-axis "epoch" 1 --> {len(rows)}', *lines, "```", ""]


def _confusions() -> list[str]:
    counts = Counter((row["actual"], row["predicted"]) for row in _rows("confusion.csv"))
    classes = list(dict.fromkeys(actual for actual, _ in counts))
    if not classes:
        return []
    cells = [[str(counts[actual, predicted]) for predicted in classes] for actual in classes]
    head = f"| test images: actual ↓ predicted → | {' | '.join(classes)} |"
    rows = [f"| {actual} | {' | '.join(row)} |" for actual, row in zip(classes, cells, strict=True)]
    return [head, f"|---|{'---:|' * len(classes)}", *rows]


def _rows(name: str) -> list[dict[str, str]]:
    path = REPORTS / "plots" / name
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    stage.guard(main)
