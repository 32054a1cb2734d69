"""docs/scaling.md's figures: arithmetic on what `make bench-score` and `make bench-serving` measured, and a simulation.

Reads:  benchmarks/results/score.json, benchmarks/results/serving.json, benchmarks/results/cores.json
Writes: docs/scaling.md, between its two marks
Run:    python -m benchmarks.scaling
"""

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import cores, report
from benchmarks.report import CLIENTS, LOOP, At
from benchmarks.simulation import LAWS, Layout
from pipeline import stage

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/scaling.md"
BEGIN, END = "<!-- begin: python -m benchmarks.scaling -->\n", "<!-- end -->\n"
SIZE = "1024x768"
PRECISIONS = ("FP32", "INT8")

IMAGES = (10_000, 10_000_000, 1_000_000_000)
REQUESTS = (10, 1_000, 100_000)  # a second
BUSY = 0.7  # share of a replica's capacity; the rest is for bursts and while a replica is replaced
PART = 2000  # images; pipeline.score's PART_ROWS
LISTED = 24  # bytes per image that pipeline.score holds while it looks for duplicates: 8 of a hash, joined, then sorted
WATCH = 15  # seconds between a server's looks at the registry (LEUKDETECT_WATCH_SECONDS)
GETS = 5500  # a second that Amazon S3 promises for one prefix
NETWORK = 1.25e9  # bytes/s: 10 Gbit/s
VIEW = 224 * 224 * 3 + 7 * 7 * 1024 * 2 + 2048 * 4  # bytes that a view of an image costs to send and to return


def main() -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    with stage.writing(DOCUMENT) as path:
        path.write_text(before + BEGIN + figures() + END + after)


def figures() -> str:
    """The tables, as Markdown, each with what stands behind it."""
    score, serving = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("score", "serving")
    )
    size, processors = score["bytes_an_image"], score["machine"]["processors"]
    scored = {p: rate(score, At(f"pipeline.score {p}", SIZE, LOOP)) for p in PRECISIONS}
    served = {p: rate(serving, At(f"LeukDetect {p}", SIZE, CLIENTS[1])) for p in PRECISIONS}

    lines = ["| measured, images/s | " + " | ".join(PRECISIONS) + " |", "|---|---|---|"]
    lines += [f"| `pipeline.score`, one machine | {scored['FP32']:.1f} | {scored['INT8']:.1f} |"]
    lines += [f"| the server, one replica, {CLIENTS[1]} | {served['FP32']:.1f} | {served['INT8']:.1f} |", ""]
    lines += [
        f"A machine, and a replica, has {processors} processors and no GPU; images are {SIZE} JPEGs of "
        f"{size / 1000:.0f} kB; the model is the ResNet-50 at 224 px.",
        "",
        "## Scoring (arithmetic)",
        "",
        "| images | model | machine-hours | machines for a day | and for an hour | read |",
        "|---" * 6 + "|",
    ]
    for images in IMAGES:
        for precision in PRECISIONS:
            hours = images / scored[precision] / 3600
            lines += [
                f"| {images:,} | {precision} | {hours:,.2f} | {math.ceil(hours / 24):,} | {math.ceil(hours):,} | "
                f"{amount(images * size)} |"
            ]
    most = IMAGES[-1]
    a_second = most / 86_400
    lines += [
        "",
        f"Next for {most:,} images in a day ({a_second:,.0f}/s):",
        "",
        f"- reading {amount(a_second * size)}/s; an object store that promises {GETS:,} reads/s a prefix wants the "
        f"images under {math.ceil(a_second / GETS)} prefixes at least;",
        f"- while it is written, a listing holds {LISTED} bytes an image: {amount(LISTED * most)}, or "
        f"{amount(LISTED * most / 10)} in each of ten jobs, each of its own prefix;",
        f"- {most // PART:,} parts of {PART:,} rows in all.",
        "",
        "## Serving (arithmetic)",
        "",
        "| requests/s | replicas, FP32 | replicas, INT8 | processors, INT8 | received | looks at the registry/s |",
        "|---" * 6 + "|",
    ]
    for requests in REQUESTS:
        fp32, int8 = (replicas(requests, served[precision]) for precision in PRECISIONS)
        lines += [
            f"| {requests:,} | {fp32:,} | {int8:,} | {processors * int8:,} | {amount(requests * size)}/s | "
            f"{int8 / WATCH:,.1f} |"
        ]
    lines += [
        "",
        f"Each replica is at most {BUSY:.0%} busy, and one more stands in for a replica that is replaced.",
        "",
        "## Views on a cluster (arithmetic)",
        "",
        f"A view of an image is {amount(VIEW)} to send and to return at 224 px, and all of it passes the machine that "
        f"writes: with 10 Gbit/s at most {NETWORK / VIEW:,.0f} views/s.",
    ]
    return "\n".join([*lines, "", *many_cores(json.loads(cores.OUT.read_text()))]) + "\n"


def many_cores(record: dict[str, Any]) -> list[str]:
    """What was measured on one and two cores beside what the simulation gives; then larger machines."""
    what = f"requests/s, {cores.CLIENTS_A_CORE} clients a core"
    lines = ["## Many cores (simulated)", ""]
    lines += [f"| {what} | FP32 measured | simulated | INT8 measured | simulated |", "|---" * 5 + "|"]
    for name in cores.CHECKED:
        row = [name]
        for precision in cores.OURS:
            row += [f"{cores.fastest(record, name, precision):.1f}", f"{check(record, name, precision):.1f}"]
        lines += [f"| {' | '.join(row)} |"]
    lines += [
        "",
        "| cores | servers | sessions of each | threads of each | FP32, requests/s | 95 % within | alone "
        "| INT8, requests/s | 95 % within | alone |",
        "|---" * 10 + "|",
    ]
    for machine in cores.MACHINES:
        for layout in cores.layouts(machine):
            row = [str(machine), *map(str, layout)]
            for precision in cores.OURS:
                found = {law: beyond(record, precision, law, layout) for law in LAWS}
                row += [among(found, "throughput", 1), f"{1000 * found['contention']['p95']:,.0f} ms"]
                row += [among(found, "alone", 1000) + " ms"]
            lines += [f"| {' | '.join(row)} |"]
    return lines


def check(record: dict[str, Any], name: str, precision: str) -> float:
    (found,) = (c for c in record["checks"] if (c["layout"], c["precision"]) == (name, precision))
    return float(found["throughput"])


def beyond(record: dict[str, Any], precision: str, law: str, layout: Layout) -> dict[str, float]:
    sought = (precision, law, list(layout))
    (found,) = (b for b in record["beyond"] if (b["precision"], b["law"], b["layout"]) == sought)
    return dict(found)


def among(found: dict[str, dict[str, float]], key: str, unit: float) -> str:
    """A value under the middle law, and the range that the laws leave it, where they leave any."""
    values = {law: f"{unit * each[key]:,.0f}" for law, each in found.items()}
    ordered = sorted(values.values(), key=lambda text: float(text.replace(",", "")))
    return values["contention"] + (f" ({ordered[0]}–{ordered[-1]})" if len(set(ordered)) > 1 else "")


def rate(record: dict[str, Any], at: At) -> float:
    return report.spread(record["cells"], at, "throughput").median


def replicas(requests: float, capacity: float) -> int:
    return math.ceil(requests / (BUSY * capacity)) + 1


def amount(size: float) -> str:
    """Bytes, in the largest unit that leaves a whole number before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"


if __name__ == "__main__":
    stage.guard(main)
