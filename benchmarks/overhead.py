"""The server's overhead beside decoding and inference: processor time per request, compared with the naive app's.

Both serve the same trivial model on the same small image. Overhead is a server's processor time minus that of its
own decode, resize and run in a bare loop: HTTP, form, checks, hashes, queues, metrics, logs, JSON. The naive app runs
onnxruntime with one thread, so that none spins. Rounds are interleaved; the table shows medians and, in brackets, their
range.

The naive app decodes and runs the model on its event loop, so it answers nothing else meanwhile, not even a probe. A
third row shows what it costs to keep the loop free, as this server does: the same app, in the framework's threads.

Writes: benchmarks/results/overhead.json
Run:    python -m benchmarks.overhead
"""

import argparse
import asyncio
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import load, report, servers
from benchmarks.process import Running
from benchmarks.report import CLIENTS, At
from benchmarks.servers import NAIVE, OURS, ROOT, SERVERS
from pipeline import stage
from tests import tiny_model

BAR = 1.2
THREADED = replace(NAIVE, name="naive FastAPI, in threads", path="/predict-in-thread")
BARE = {SERVERS[0]: "serving", NAIVE: "peers", THREADED: "peers"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, default=Path(".benchmarks"), help="where the naive app's is")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/overhead.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=2000, help="requests a round and number of clients")
    options = parser.parse_args()
    environments = options.environments.resolve()
    for server in BARE:
        servers.install(server, environments)

    cells = []
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder) / "tiny.onnx", Path(folder) / "images"
        tiny_model.write(model)
        images.mkdir()
        (images / "image.jpg").write_bytes(tiny_model.jpeg((200, 60, 60)))
        for number in range(1, options.rounds + 1):
            for server in report.turns(BARE, number):
                work = bare(BARE[server], model, images, options.n)
                request = load.post(server.path, *server.encode((images / "image.jpg").read_bytes()))
                run_folder = Path(tempfile.mkdtemp(dir=folder))
                with servers.started(server, model, environments, run_folder, THREADS="1") as process:
                    asyncio.run(load.closed_loop(process.port, [request], clients=8, n=200))  # warm
                    for clients in CLIENTS:
                        whole = cpu_a_request(process, request, int(clients.split()[0]), options.n)
                        where = At(server.name, "tiny model", clients)._asdict()
                        cells.append(where | {"round": number, "whole": whole, "work": work, "overhead": whole - work})

    lines = ["| µs of processor time a request | whole | decode and inference | overhead |", "|---|---|---|---|"]
    verdicts = []
    for clients in CLIENTS:
        ours, naive, threaded = (At(server.name, "tiny model", clients) for server in BARE)
        for at in (ours, naive, threaded):
            numbers = (str(report.spread(cells, at, key)) for key in ("whole", "work", "overhead"))
            lines += [f"| {at.server}, {clients} | {' | '.join(numbers)} |"]
        verdicts += [report.compare(cells, "overhead", ours, other, BAR, at_most=True) for other in (naive, threaded)]
    print("\n".join(lines), report.as_markdown(verdicts), sep="\n\n")
    stage.write_json(options.out, {"cells": cells, "verdicts": report.as_json(verdicts)})


def bare(code: str, model: Path, images: Path, n: int) -> float:
    """Microseconds of processor time that decode, resize and run take in a loop."""
    command: list[str | Path] = [OURS, "-m", "benchmarks.bare", code, model, images, "--n", str(n), "--threads", "1"]
    done: dict[str, Any] = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return float(done["cpu_seconds"]) / n * 1e6


def cpu_a_request(process: Running, request: bytes, clients: int, n: int) -> float:
    """Microseconds of a server's processor time, over `n` requests that must all succeed."""
    before = process.cpu_seconds()
    outcome = asyncio.run(load.closed_loop(process.port, [request], clients=clients, n=n))
    after = process.cpu_seconds()
    assert all(answer.status == load.OK for answer in outcome.answers), outcome.summary()["statuses"]
    return (after - before) / n * 1e6


if __name__ == "__main__":
    stage.guard(main)
