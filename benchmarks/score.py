"""Batch scoring beside a bare onnxruntime loop: images/s on the same files, model and processors.

Bare is benchmarks/bare.py, which decodes, resizes and runs one image after the other, with files that are in memory
already. Ours is `python -m pipeline.score` as a user runs it; its images/s are from its last output line, without
imports and loading the model, which have their own column. Rounds are interleaved, each in random order.

Writes: benchmarks/results/score.json
Run:    python -m benchmarks.score --models FOLDER     (FOLDER has one model of each precision)
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import pictures, report
from benchmarks.process import machine
from benchmarks.report import LOOP, At
from leukdetect.contract import FILES
from pipeline import stage
from pipeline.stage import Problem

ROOT = Path(__file__).parents[1]
SIZE = "1024x768"
BAR = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="a folder with one model of each precision")
    parser.add_argument("--images", type=Path, default=Path(".benchmarks/images"), help="where rendered ones are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/score.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=300, help="images a round")
    options = parser.parse_args()
    distinct = pictures.jpegs(SIZE, options.images.resolve())

    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.images) as made:
        folder = Path(made) / "images"
        folder.mkdir()
        for number in range(options.n):
            (folder / f"{number:05}.jpg").hardlink_to(distinct[number % len(distinct)])
        for number in range(1, options.rounds + 1):
            order = [(who, precision) for precision in FILES for who in ("bare", "ours")]
            for who, precision in report.turns(order, number):
                model = (options.models / FILES[precision]).resolve()
                if who == "bare":
                    measured = bare(model, distinct[0].parent, options.n)
                else:
                    measured = ours(model, folder, Path(made) / f"{precision}-{number}", options.n)
                cells.append(at(who, precision)._asdict() | {"round": number} | measured)

    lines = ["| | images/s | seconds before the first image |", "|---|---|---|"]
    verdicts = []
    for precision in FILES:
        verdicts.append(report.compare(cells, "throughput", at("ours", precision), at("bare", precision), BAR))
        for who in ("ours", "bare"):
            place = at(who, precision)
            start = report.spread(cells, place, "start") if who == "ours" else ""
            lines += [f"| {place.server} | {report.spread(cells, place, 'throughput')} | {start} |"]
    print("\n".join(lines), report.as_markdown(verdicts), sep="\n\n")
    size = sum(path.stat().st_size for path in distinct) / len(distinct)
    record = {"machine": machine(), "bytes_an_image": size, "cells": cells, "verdicts": report.as_json(verdicts)}
    stage.write_json(options.out, record)


def at(who: str, precision: str) -> At:
    name = {"ours": "pipeline.score", "bare": "bare loop"}[who]
    return At(f"{name} {precision.upper()}", SIZE, LOOP)


def bare(model: Path, images: Path, n: int) -> dict[str, float]:
    done = json.loads(run("-m", "benchmarks.bare", "serving", str(model), str(images), "--n", str(n)))
    return {"throughput": done["n"] / done["seconds"]}


def ours(model: Path, images: Path, out: Path, n: int) -> dict[str, float]:
    started = time.perf_counter()
    said = run("-m", "pipeline.score", str(images), "--out", str(out), "--model", str(model))
    seconds = time.perf_counter() - started
    pace = re.search(r" ([\d,]+) of them now, ([\d.]+)/s", said)
    if pace is None or int(pace[1].replace(",", "")) != n:
        raise Problem(f"pipeline.score did not score {n} images: {said}")
    throughput = float(pace[2])
    return {"throughput": throughput, "start": seconds - n / throughput}


def run(*arguments: str) -> str:
    """What Python prints, run with these arguments in this project. Raises Problem if it fails."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"{' '.join(arguments[:2])} failed: {done.stderr[-1000:]}")
    return done.stdout


if __name__ == "__main__":
    stage.guard(main)
