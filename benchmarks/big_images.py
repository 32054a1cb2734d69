"""Images of 12 megapixels, decoded to no less than twice the model's size (DCT scaling) beside decoded whole.

One model file twice, its contract with `scaled` and without; each round starts a server on both, in random order.
Ratios are taken within a round; the table shows their median and, in brackets, their range. Then the demo's model and
all its images, enlarged: how often the answer is another one. (Of all, training images too: it is decoding that is
compared, and the test images alone are too few to see two in a thousand.)

Writes: benchmarks/results/big_images.json
Run:    python -m benchmarks.big_images [--models FOLDER] [--rounds 5]   (about a minute a round)
"""

import argparse
import asyncio
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from benchmarks import load, pictures, report, servers
from benchmarks.process import machine
from benchmarks.servers import ROOT, SERVERS
from leukdetect import contract, images, model_file
from leukdetect.contract import FILES
from leukdetect.registry import Located
from pipeline import stage
from pipeline.data import prepared
from pipeline.data.source import RAW

SIZE, CLIENTS = "4000x3000", 8
ENLARGED = 1536  # pixels a side of the demo's images: far more than the model's, and quick enough for a thousand
SHOWN = ("throughput", "p50", "p95", "cpu_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".benchmarks/model224"), help="where the .onnx files are")
    parser.add_argument("--environments", type=Path, default=Path(".benchmarks"), help="where the images are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=80, help="requests a cell")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/big_images.json")
    options = parser.parse_args()
    environments = options.environments.resolve()
    paths = pictures.jpegs(SIZE, environments / "images")
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=environments) as folder:
        for server in SERVERS[:2]:
            requests = [load.post(server.path, *server.encode(path.read_bytes())) for path in paths]
            files = {}
            for scaled in (False, True):
                files[scaled] = Path(folder) / str(scaled) / FILES[server.precision]
                files[scaled].parent.mkdir(exist_ok=True)
                _write(options.models / FILES[server.precision], files[scaled], scaled)
            for number in range(options.rounds):
                for scaled in report.turns([False, True], number):
                    with servers.started(server, files[scaled], environments, Path(folder)) as process:
                        asyncio.run(load.closed_loop(process.port, requests, clients=CLIENTS, n=2 * CLIENTS))  # warm
                        before = process.cpu_seconds()
                        outcome = asyncio.run(load.closed_loop(process.port, requests, clients=CLIENTS, n=options.n))
                        cpu = {"cpu_ms": round(1000 * (process.cpu_seconds() - before) / options.n, 2)}
                    cells.append({"precision": server.precision, "round": number, "scaled": scaled} | cpu)
                    cells[-1] |= outcome.summary()
                print(f"{server.precision}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(table(cells))
    accuracy = _accuracy()
    print("", f"The demo's images at {ENLARGED} px, balanced accuracy: {accuracy}", sep="\n")
    stage.write_json(options.out, {"machine": machine(), "cells": cells, "demo": accuracy})


def _write(source: Path, target: Path, scaled: bool) -> None:
    model = onnx.load(source)
    promise = contract.parse({entry.key: entry.value for entry in model.metadata_props})
    size = promise.decode.size
    how = contract.Decode(size=size, behaviour=images.behaviour(size, version=3 if scaled else 2), scaled=scaled)
    entry = next(each for each in model.metadata_props if each.key == contract.METADATA_KEY)
    entry.value = promise.model_copy(update={"decode": how}).model_dump_json()
    onnx.save(model, target)


def _accuracy() -> dict[str, float]:
    model = model_file.load(Located(ROOT / "models/leukdetect.onnx"))
    _, rows = prepared.read()
    labels = rows["label"].to_numpy()
    answers: dict[bool, list[int]] = {False: [], True: []}
    for path in stage.progress([RAW / each for each in rows["path"]], "enlarge and decode"):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        for scaled, answered in answers.items():
            pixels = images.sized(buffer.getvalue(), model.contract.decode.size, scaled)
            answered.append(int(model.run(pixels[None], ("probabilities",))[0].argmax()))
    whole, smaller = (np.array(answered) for answered in answers.values())
    return {
        "images": len(labels),
        "other class": int((whole != smaller).sum()),
        "whole": round(balanced_accuracy_score(labels, whole), 4),
        "scaled": round(balanced_accuracy_score(labels, smaller), 4),
    }


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: scaled ÷ whole, over the rounds."""
    lines = ["| scaled ÷ whole | requests/s | p50 | p95 | processor ms a request |", "|---|---|---|---|---|"]
    for precision in dict.fromkeys(cell["precision"] for cell in cells):
        mine = {(cell["round"], cell["scaled"]): cell for cell in cells if cell["precision"] == precision}
        shown = []
        for key in SHOWN:
            ratios = [mine[number, True][key] / mine[number, False][key] for number in {each for each, _ in mine}]
            shown.append(report.ratio(ratios))
        lines.append(f"| {precision.upper()}, 12 megapixels, {CLIENTS} clients | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    stage.guard(main)
