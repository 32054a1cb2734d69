"""Time from spawning the server until it is ready, and its memory after 100 requests, beside the naive app.

Every start is a new process; the files may be in the page cache. Rounds are interleaved; the table shows medians and,
in brackets, their range.

Writes: benchmarks/results/startup.json
Run:    python -m benchmarks.startup --models FOLDER     (FOLDER: of python -m benchmarks.model224)
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from benchmarks import load, pictures, report, servers
from benchmarks.report import At, Verdict
from benchmarks.servers import NAIVE, ROOT, SERVERS
from leukdetect.contract import FILES
from pipeline import stage

SIZE = "1024x768"
READY_SECONDS, RSS_MB = 3.0, 450.0  # of INT8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=Path, default=Path(".benchmarks/model224"), help="where the two .onnx files are"
    )
    parser.add_argument(
        "--environments", type=Path, default=Path(".benchmarks"), help="the naive app's, and the images"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/startup.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=100, help="requests before memory is read")
    options = parser.parse_args()
    environments = options.environments.resolve()
    compared = (*SERVERS[:2], NAIVE)
    for server in compared:
        servers.install(server, environments)
    files = [path.read_bytes() for path in pictures.jpegs(SIZE, environments / "images")]

    cells = []
    for number in range(1, options.rounds + 1):
        for server in report.turns(compared, number):
            model = options.models.resolve() / FILES[server.precision]
            requests = [load.post(server.path, *server.encode(file)) for file in files]
            with (
                tempfile.TemporaryDirectory() as folder,
                servers.started(server, model, environments, Path(folder)) as process,
            ):
                asyncio.run(load.closed_loop(process.port, requests, clients=8, n=options.n))
                cell = {"ready_seconds": process.seconds_to_ready, "rss_mb": process.rss() / 1e6}
            cells.append(At(server.name, SIZE, "start")._asdict() | {"round": number} | cell)

    lines = ["| | ready after s | RSS after 100 requests, MB |", "|---|---|---|"]
    for server in compared:
        at = At(server.name, SIZE, "start")
        lines += [
            f"| {server.name} | {report.spread(cells, at, 'ready_seconds')} | {report.spread(cells, at, 'rss_mb')} |"
        ]
    verdicts = []
    at = At(SERVERS[1].name, SIZE, "start")
    for key, limit in (("ready_seconds", READY_SECONDS), ("rss_mb", RSS_MB)):
        rounds = [value / limit for value in report.values(cells, at, key)]
        ratio = report.spread(cells, at, key).median / limit
        verdicts += [Verdict(f"{at.server}: {key} ÷ {limit:g}", ratio, rounds, "≤ 1", ratio <= 1)]
    print("\n".join(lines), report.as_markdown(verdicts), sep="\n\n")
    stage.write_json(options.out, {"cells": cells, "verdicts": report.as_json(verdicts)})


if __name__ == "__main__":
    stage.guard(main)
