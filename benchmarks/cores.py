"""Which layout suits a machine of many cores: as many servers as cores, one server, or something between?

Measures, alone on a machine of two cores, what decoding and the model take, at one thread and two, in batches of 1 to
BATCH; then what the real server gives in the three layouts that two cores allow, with 4 clients a core. A simulation
(benchmarks/simulation.py) of the same layouts stands beside it, and goes on to 4, 16 and 64 cores under three laws of
how a run shortens with threads. The event loop's time is benchmarks/overhead.py's. A neighbour can only slow things
down, so the fastest round counts, of each piece and of each server. What one core shows beyond the pieces is fitted, so
that the two layouts of two cores are predictions.

Reads:  benchmarks/results/overhead.json
Writes: benchmarks/results/cores.json
Run:    python -m benchmarks.cores --models FOLDER     (about 4 minutes; FOLDER: of python -m benchmarks.model224)
        python -m benchmarks.cores --again             (only simulates anew, from what was measured)
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load, pictures, report, servers
from benchmarks.report import CLIENTS, At
from benchmarks.servers import ROOT, SERVERS, Server
from benchmarks.serving import machine
from benchmarks.simulation import LAWS, Draw, Layout, Work, measured, simulate
from leukdetect.contract import FILES, OBSERVED
from leukdetect.decoding import decode
from leukdetect.runtime import open_session, run
from pipeline import stage
from serving.inference.engine import BATCH

RESULTS = ROOT / "benchmarks/results"
OUT = RESULTS / "cores.json"
SIZE, SIDE = "1024x768", 224  # of the images, and of the model
CLIENTS_A_CORE = 4
CHECKED = {"1 core": Layout(1, 1, 1), "2 cores, 1 server": Layout(1, 1, 2), "2 cores, 2 servers": Layout(2, 1, 1)}
MACHINES = (4, 16, 64)
OURS = {server.precision: server for server in SERVERS if server.environment is None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".benchmarks/model224"), help="one of each precision")
    parser.add_argument("--images", type=Path, default=Path(".benchmarks/images"), help="where rendered ones are kept")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3, help="of each server's load, a round")
    parser.add_argument("--again", action="store_true", help="only simulate")
    options = parser.parse_args()
    if options.again:
        record = json.loads(OUT.read_text())
    else:
        files = [path.read_bytes() for path in pictures.jpegs(SIZE, options.images.resolve())]
        models = {precision: options.models.resolve() / name for precision, name in FILES.items()}
        record = {"machine": machine()} | measure(models, files, options.rounds, options.seconds)
    stage.write_json(OUT, record | simulated(record))


def measure(models: dict[str, Path], files: Sequence[bytes], rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds of each piece, and requests/s of each layout, in turns."""
    pieces: dict[str, list[list[float]]] = {}  # of each round
    busy: dict[str, list[float]] = {}
    cells: list[dict[str, Any]] = []
    look = partial(decode, size=SIDE, max_pixels=2**25, scaled=True)
    pixels = np.stack([look(files[n % len(files)]).pixels for n in range(BATCH)])
    for number in range(1, rounds + 1):
        with on([0]):
            pieces.setdefault("decode", []).append(timed(look, [files[n % len(files)] for n in range(20)])[0])
        for precision, path in models.items():
            for threads in (1, 2):
                with on(range(threads)):
                    answer = partial(run, open_session(path, threads), outputs=OBSERVED)
                    for batch in (1, BATCH):
                        found, cores = timed(answer, [pixels[:batch]] * (16 // batch + 4))
                        pieces.setdefault(f"{precision} {threads} {batch}", []).append(found)
                        busy.setdefault(f"{precision} {threads}", []).append(cores)
        for name, precision in report.turns([(name, precision) for name in CHECKED for precision in models], number):
            cell = served(CHECKED[name], OURS[precision], models[precision], files, seconds)
            cells.append({"layout": name, "precision": precision, "round": number} | cell)
    return {"pieces": pieces, "busy": {key: max(values) for key, values in busy.items()}, "cells": cells}


def timed(work: Callable[[Any], object], inputs: Sequence[Any]) -> tuple[list[float], float]:
    """Seconds of each call, and how many cores all of them kept busy."""
    work(inputs[0])
    seconds, cpu = [], time.process_time()
    for each in inputs:
        started = time.perf_counter()
        work(each)
        seconds.append(round(time.perf_counter() - started, 6))
    return seconds, (time.process_time() - cpu) / sum(seconds)


@contextmanager
def on(cores: Iterable[int]) -> Iterator[None]:
    """What starts in the block has these cores, and no others."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


def served(layout: Layout, server: Server, model: Path, files: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Real servers, each on cores of its own. `client`: seconds of processor time that the load took a request."""
    each = layout.sessions * layout.threads
    requests = [load.post(server.path, *server.encode(file)) for file in files]
    with ExitStack() as stack:
        ports = []
        for number in range(layout.servers):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with on(range(number * each, (number + 1) * each)):
                ports.append(stack.enter_context(servers.started(server, model, Path(), folder)).port)

        async def ask(seconds: float) -> list[load.Outcome]:
            clients = CLIENTS_A_CORE * each
            loops = (load.closed_loop(port, requests, clients=clients, n=10**6, seconds=seconds) for port in ports)
            return await asyncio.gather(*loops)

        asyncio.run(ask(1))
        cpu = time.process_time()
        outcomes = asyncio.run(ask(seconds))
        cpu = time.process_time() - cpu
    answers = [answer for outcome in outcomes for answer in outcome.answers]
    assert all(answer.status == load.OK for answer in answers)
    return {
        "throughput": sum(len(outcome.answers) / outcome.seconds for outcome in outcomes),
        "p95": load.percentile(sorted(answer.latency for answer in answers), 95),
        "client": cpu / len(answers),
    }


def fastest(record: dict[str, Any], layout: str, precision: str) -> float:
    """Requests/s of the best round."""
    cells = [cell for cell in record["cells"] if (cell["layout"], cell["precision"]) == (layout, precision)]
    return float(max(cell["throughput"] for cell in cells))


def simulated(record: dict[str, Any]) -> dict[str, Any]:
    """The checked layouts under what was measured, and those of larger machines under each law."""
    checks, beyond = [], []
    for precision in OURS:
        for name, layout in CHECKED.items():
            # Two cores are shared with the clients; beside one core they have the other.
            cells = [c for c in record["cells"] if (c["layout"], c["precision"]) == (name, precision)]
            client = float(np.median([c["client"] for c in cells])) if layout.cores == 2 else 0.0
            result = simulate(layout, work(record, precision, "contention", client), CLIENTS_A_CORE * layout.cores)
            checks.append({"layout": name, "precision": precision} | result._asdict())
        for cores in MACHINES:
            for layout in layouts(cores):
                for law in LAWS:
                    result = simulate(layout, work(record, precision, law), CLIENTS_A_CORE * cores)
                    alone = simulate(layout, work(record, precision, law), layout.servers, requests=200).mean
                    where = {"precision": precision, "law": law, "layout": list(layout)}
                    beyond.append(where | result._asdict() | {"alone": alone})
    return {"checks": checks, "beyond": beyond}


def layouts(cores: int) -> list[Layout]:
    """Servers of one session each; then one server of several, which is not built."""
    servers = [Layout(cores // threads, 1, threads) for threads in sorted({1, 2, 4, cores})]
    return [*servers, Layout(1, cores, 1), Layout(1, cores // 2, 2)]


def work(record: dict[str, Any], precision: str, law: str, client: float = 0.0) -> Work:
    """What was measured; beyond two threads, a run at one thread shortened by the law.

    A run of k threads wants as many cores as two did on average, in proportion. What a request takes on one core beyond
    its pieces (caches that the model has emptied, switches between threads) is fitted to both precisions on one core.
    """
    cells = json.loads((RESULTS / "overhead.json").read_text())["cells"]
    loop = report.spread(cells, At("LeukDetect FP32", "tiny model", CLIENTS[1]), "overhead").median / 1e6
    pieces = {key: min(rounds, key=np.median) for key, rounds in record["pieces"].items()}
    medians = {key: float(np.median(values)) for key, values in pieces.items()}
    known = [
        loop + medians["decode"] + medians[f"{each} 1 {BATCH}"] / BATCH - 1 / fastest(record, "1 core", each)
        for each in OURS
    ]
    looking = measured([seconds - sum(known) / len(known) for seconds in pieces["decode"]])

    def model(threads: int, batch: int) -> Draw:
        """Between the batches that were measured, in a line."""
        (one, most), (one_by_two, most_by_two) = ([medians[f"{precision} {k} {b}"] for b in (1, BATCH)] for k in (1, 2))
        part = (batch - 1) / (BATCH - 1)
        seconds, by_two = one + (most - one) * part, one_by_two + (most_by_two - one_by_two) * part
        seconds *= LAWS[law](by_two / seconds, threads)
        return lambda rng: seconds

    def width(threads: int) -> float:
        return 1.0 if threads == 1 else threads * record["busy"][f"{precision} 2"] / 2

    return Work(lambda rng: loop + client, looking, model, width)


if __name__ == "__main__":
    stage.guard(main)
