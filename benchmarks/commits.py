"""The server of today's code beside an earlier commit's, on the same model files, images and processors.

Each round starts both, in random order, and puts every load on one before the other starts. Ratios are taken within a
round; the table shows their median and, in brackets, their range. It needs a quiet machine.

Writes: benchmarks/results/commits.json
Run:    python -m benchmarks.commits --before COMMIT [--models FOLDER] [--rounds 5]   (about 2 minutes a round)
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import checkout, load, pictures, report, servers
from benchmarks.process import machine
from benchmarks.servers import ROOT, SERVERS, Server
from leukdetect.contract import FILES
from pipeline import stage

LOADS = {  # name: size of the images, clients
    "224 px, 1 client": ("224x224", 1),
    "224 px, 8 clients": ("224x224", 8),
    "1024×768, 8 clients": ("1024x768", 8),
}
SHOWN = ("throughput", "p50", "p95", "cpu_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", required=True, metavar="COMMIT")
    parser.add_argument("--models", type=Path, default=Path(".benchmarks/model224"), help="where the .onnx files are")
    parser.add_argument("--environments", type=Path, default=Path(".benchmarks"), help="where the images are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=400, help="requests a cell")
    parser.add_argument("--precisions", nargs="+", choices=list(FILES), default=["int8", "fp32"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/commits.json")
    options = parser.parse_args()
    environments = options.environments.resolve()
    images = {size: pictures.jpegs(size, environments / "images") for size, _ in LOADS.values()}
    requests = {size: _requests(paths) for size, paths in images.items()}
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trees = {"before": checkout.at(options.before, Path(folder) / "code"), "now": ROOT}
        for number in range(options.rounds):
            for server in SERVERS[:2]:
                if server.precision not in options.precisions:
                    continue
                for name in report.turns(trees, number):
                    model = options.models.resolve() / FILES[server.precision]
                    of_tree = replace(server, code=trees[name])
                    for cell in _measure(of_tree, model, environments, requests, options.n):
                        cells.append(cell | {"tree": name, "precision": server.precision, "round": number})
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            stage.write_json(options.out, {"commit": options.before, "machine": machine(), "cells": cells})
    print(table(cells))


def _requests(paths: list[Path]) -> list[bytes]:
    return [load.post(SERVERS[0].path, *SERVERS[0].encode(path.read_bytes())) for path in sorted(paths)]


def _measure(
    server: Server, model: Path, environments: Path, requests: dict[str, list[bytes]], n: int
) -> list[dict[str, Any]]:
    cells = []
    with (
        tempfile.TemporaryDirectory(dir=environments) as folder,
        servers.started(server, model, environments, Path(folder)) as process,
    ):
        asyncio.run(load.closed_loop(process.port, requests["224x224"], clients=8, n=64))  # warm
        for name, (size, clients) in LOADS.items():
            before = process.cpu_seconds()
            outcome = asyncio.run(load.closed_loop(process.port, requests[size], clients=clients, n=n))
            milliseconds = 1000 * (process.cpu_seconds() - before) / n
            cells.append(outcome.summary() | {"load": name, "cpu_ms": round(milliseconds, 2)})
    return cells


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: today's code ÷ the commit's, over the rounds."""
    lines = ["| now ÷ before | requests/s | p50 | p95 | processor ms a request |", "|---|---|---|---|---|"]
    for precision in dict.fromkeys(cell["precision"] for cell in cells):
        for name in LOADS:
            mine = [cell for cell in cells if (cell["precision"], cell["load"]) == (precision, name)]
            trees = {tree: {cell["round"]: cell for cell in mine if cell["tree"] == tree} for tree in ("before", "now")}
            shown = []
            for key in SHOWN:
                ratios = [trees["now"][number][key] / cell[key] for number, cell in trees["before"].items()]
                shown.append(report.ratio(ratios))
            lines.append(f"| {precision.upper()}, {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    stage.guard(main)
