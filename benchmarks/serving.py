"""Side by side: this server, eight others and a bare loop, with the same two files, images and processors.

Each round starts every server with FP32 and with INT8, in random order; a server gets every load before the next one.
Closed loop with 1 and 8 clients, then Poisson arrivals at 50, 80, 100 and 300 % of that server's own throughput with
8 clients just before. Every server's answers are compared with the bare loop's before it is timed.
Tables show medians of the rounds and, in brackets, their range. It needs a quiet machine and two hours.

Writes: benchmarks/results/serving.json (every cell, the machine, all versions)
Run:    python -m benchmarks.serving --models FOLDER     (FOLDER: of python -m benchmarks.model224)
        python -m benchmarks.serving --setup             (only makes the other servers' environments)
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import load, pictures, report, servers
from benchmarks.process import Running, ServerError, machine
from benchmarks.report import CLIENTS, DEADLINE, LOOP, SHARES, Cell
from benchmarks.servers import OURS, ROOT, SERVERS, Server
from leukdetect.contract import FILES
from pipeline import stage
from pipeline.stage import Problem

MAX_SECONDS = 60  # of a closed loop, however slow the server
TOLERANCE = 0.01  # between a server's probabilities and the bare loop's; batches and libraries round differently
BARE = {
    "bare loop FP32": ("serving", "fp32"),
    "bare loop INT8": ("serving", "int8"),
    "bare loop FP32, the peers' code": ("peers", "fp32"),
}


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives this
    environments = options.environments.resolve()
    chosen = [server for server in SERVERS if not options.servers or server.name in options.servers]
    versions, missing = {}, {}
    for server in chosen:
        try:
            versions[server.name] = servers.install(server, environments)
        except ServerError as error:
            missing[server.name] = str(error)
    if options.setup:
        print("\n".join([f"{name}: ready" for name in versions] + [f"{name}: {why}" for name, why in missing.items()]))
        return
    models = {precision: options.models.resolve() / name for precision, name in FILES.items()}
    for path in models.values():
        if not path.is_file():
            raise Problem(f"{path} is missing; `python -m benchmarks.model224 --out {options.models}` makes it")

    images = {size: pictures.jpegs(size, environments / "images") for size in options.sizes}
    ours = {server.precision: server.name for server in SERVERS if not server.environment}
    peers = {key: [s.name for s in SERVERS if s.environment and s.precision == key] for key in FILES}
    expected: dict[tuple[str, str], list[list[float]]] = {}
    cells: list[Cell] = json.loads(options.out.read_text())["cells"] if options.more else []
    earlier = max((cell["round"] for cell in cells), default=0)
    tuning = {server.name: server.tuning for server in chosen}
    record = {"machine": machine(), "versions": versions, "tuning": tuning, "missing": missing, "cells": cells}
    begun = time.monotonic()
    for number in range(earlier + 1, earlier + options.rounds + 1):
        print(
            f"round {number}, of {options.rounds} now; the machine's load is {os.getloadavg()[0]:.1f}", file=sys.stderr
        )
        for name, (code, precision) in BARE.items():
            for size, paths in images.items():
                cell, expected[precision, size] = bare(code, models[precision], paths, options.n)
                cells.append(cell | {"server": name, "round": number, "size": size, "load": LOOP})
        ready = report.turns((server for server in chosen if server.name not in missing), number)
        for position, server in enumerate(ready):
            print(f"  {server.name}", file=sys.stderr)
            try:
                answers = {size: expected[server.precision, size] for size in images}
                for cell in measure(server, models[server.precision], environments, images, answers, options, number):
                    cells.append(cell | {"server": server.name, "round": number})
            except ServerError as error:
                missing[server.name] = str(error)
                print(f"  {error}", file=sys.stderr)
            stage.write_json(options.out, record)  # so that an interruption loses nothing measured so far
            part = (number - earlier - 1 + (position + 1) / len(ready)) / options.rounds
            left = (time.monotonic() - begun) * (1 / part - 1)
            print(f"  about {left / 60:.0f} min left", file=sys.stderr)

    verdicts = report.verdicts(cells, ours, peers, next(iter(BARE)))
    print(report.tables(cells, missing), report.as_markdown(verdicts), sep="\n\n")
    stage.write_json(options.out, record | {"verdicts": report.as_json(verdicts)})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=Path, default=Path(".benchmarks/model224"), help="where the two .onnx files are"
    )
    parser.add_argument("--environments", type=Path, default=Path(".benchmarks"), help="the peers', and the images")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serving.json")
    parser.add_argument("--setup", action="store_true", help="only make the environments")
    parser.add_argument("--servers", nargs="+", choices=[server.name for server in SERVERS], help="only these")
    parser.add_argument("--sizes", nargs="+", choices=pictures.SIZES, default=["1024x768", "224x224"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=300, help="requests a cell, at least")
    parser.add_argument("--open-seconds", type=float, default=10, help="an open loop's length, at least")
    parser.add_argument("--shares", nargs="*", choices=SHARES, default=list(SHARES), help="the open loops, maybe none")
    parser.add_argument("--more", action="store_true", help="add the rounds to those of --out")
    parser.add_argument("--quick", action="store_true", help="1 round, n 40, open loops of 4 s: a smoke test")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.n, options.open_seconds = 1, 40, 4
    return options


def bare(code: str, model: Path, paths: Sequence[Path], n: int) -> tuple[Cell, list[list[float]]]:
    """Runs benchmarks.bare in the server's environment. Returns its cell, and its probabilities of each image."""
    command: list[str | Path] = [OURS, "-m", "benchmarks.bare", code, model, paths[0].parent, "--n", str(n)]
    done = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    return {"n": n, "throughput": n / done["seconds"], "cpu": done["cpu_seconds"]}, done["probabilities"]


def measure(
    server: Server,
    model: Path,
    environments: Path,
    images: dict[str, list[Path]],
    expected: dict[str, list[list[float]]],
    options: argparse.Namespace,
    seed: int,
) -> Iterator[Cell]:
    """Starts a server, checks its answers, and yields a cell a load. The open loops use the first size.

    Raises:
        ServerError: it did not start, or does not answer as it should.
    """
    with (
        tempfile.TemporaryDirectory(dir=environments) as folder,
        servers.started(server, model, environments, Path(folder)) as process,
    ):
        port, capacity = process.port, 0.0
        requests = {
            size: [load.post(server.path, *server.encode(path.read_bytes())) for path in sorted(paths)]
            for size, paths in images.items()
        }
        for size, mine in requests.items():
            _check_answers(server, port, mine, expected[size])
        asyncio.run(load.closed_loop(port, requests[options.sizes[0]], clients=8, n=max(16, options.n // 10)))  # warm
        first, capacity = options.sizes[0], 0.0
        for size, mine in requests.items():
            for name in CLIENTS:
                clients = int(name.split()[0])
                loop = load.closed_loop(port, mine, clients=clients, n=options.n, seconds=MAX_SECONDS)
                cell = _cell(process, loop)
                yield cell | {"size": size, "load": name}
            if size == first:
                capacity = cell["throughput"]
        for name in options.shares:
            rate = capacity * SHARES[name]
            arrivals = load.poisson(rate, max(options.n, round(rate * options.open_seconds)), seed)
            cell = _cell(process, load.open_loop(port, requests[first], arrivals, deadline=DEADLINE))
            yield cell | {"size": first, "load": name, "offered": rate}


def _check_answers(server: Server, port: int, requests: Sequence[bytes], expected: list[list[float]]) -> None:
    outcome = asyncio.run(load.closed_loop(port, requests, clients=1, n=len(requests)))
    for answer, wanted in zip(outcome.answers, expected, strict=True):
        if answer.status != load.OK:
            raise ServerError(f"it answered {answer.status}: {answer.body[:400]!r}")
        given = server.read(json.loads(answer.body))
        if len(given) != len(wanted) or max(abs(a - b) for a, b in zip(given, wanted, strict=True)) > TOLERANCE:
            raise ServerError(f"it answered {given}, not {wanted}: it does another task")


def _cell(process: Running, loop: Coroutine[Any, Any, load.Outcome]) -> Cell:
    """`cpu`: seconds of the server's processor time; `client_cpu`: share of one processor that the load itself took."""
    before, own = process.cpu_seconds(), time.process_time()
    outcome = asyncio.run(loop)
    own = time.process_time() - own
    cpu = process.cpu_seconds() - before
    return outcome.summary(DEADLINE) | {"cpu": round(cpu, 2), "client_cpu": round(own / outcome.seconds, 3)}


if __name__ == "__main__":
    stage.guard(main)
