"""How fast /livez and /readyz answer while the server is idle, overloaded, and asked for everything at once.

A separate process asks one or the other in turn, every 20 ms, and latency counts from the planned moment, so a stall of
a second is fifty slow answers and not one. Overloaded: predictions arrive at three times the rate that 8 clients got
just before. Everything: the same, and explanations, batches of 16 images, and tensors in 1.5 MB of JSON. Large batches:
two clients, each with forms of 94 MB (40 BMP files).

Writes: benchmarks/results/probes.json
Run:    python -m benchmarks.probes --models FOLDER     (FOLDER: of python -m benchmarks.model224)
"""

import argparse
import asyncio
import http.client
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import load, pictures, report, servers
from benchmarks.report import Verdict
from benchmarks.servers import BOUNDARY, ROOT, SERVERS, UPLOAD
from leukdetect.contract import FILES
from pipeline import stage

PATHS = ("/livez", "/readyz")
EVERY = 0.02  # seconds from one probe to the next
LIMIT_MS = 50.0  # at the 99th percentile
BATCH = 16  # images
DEADLINE = 2.0
SIZE = "1024x768"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".benchmarks/model224"), help="where the .onnx files are")
    parser.add_argument("--environments", type=Path, default=Path(".benchmarks"), help="where the images are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/probes.json")
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    options = parser.parse_args()
    environments = options.environments.resolve()
    files = [path.read_bytes() for path in pictures.jpegs(SIZE, environments / "images")]
    cells = []
    for server in SERVERS[:2]:  # ours, FP32 and INT8
        model = options.models.resolve() / FILES[server.precision]
        with (
            tempfile.TemporaryDirectory() as folder,
            servers.started(server, model, environments, Path(folder)) as process,
        ):
            for cell in asyncio.run(measured(process.port, files, options.seconds)):
                cells.append({"server": server.name} | cell)

    lines = ["| | load | probes | p50 ms | p99 ms | slowest ms | not 200 |", "|---|---|---|---|---|---|---|"]
    for cell in cells:
        lines += [f"| {' | '.join(str(value) for value in cell.values())} |"]
    verdicts = []
    for cell in cells:
        name, ratio = f"{cell['server']}, {cell['load']}", cell["p99"] / LIMIT_MS
        verdicts += [Verdict(f"{name}: p99 ÷ {LIMIT_MS:g} ms", ratio, [], "≤ 1", ratio <= 1)]
        verdicts += [Verdict(f"{name}: answers other than 200", cell["other"], [], "= 0", cell["other"] == 0)]
    print("\n".join(lines), report.as_markdown(verdicts), sep="\n\n")
    stage.write_json(options.out, {"cells": cells, "verdicts": report.as_json(verdicts)})


async def measured(port: int, files: Sequence[bytes], seconds: float) -> list[dict[str, Any]]:
    """A row for each load."""
    predict = [load.post("/predict", *UPLOAD(file)) for file in files]
    calm = await load.closed_loop(port, predict, clients=8, n=1_000_000, seconds=seconds / 4)
    rate = 3 * calm.summary()["throughput"]

    def overload(seed: int) -> Coroutine[Any, Any, object]:
        return load.open_loop(port, predict, load.poisson(rate, int(rate * seconds), seed), deadline=DEADLINE)

    def clients(request: bytes, count: int) -> Coroutine[Any, Any, object]:
        return load.closed_loop(port, [request], clients=count, n=1_000_000, seconds=seconds)

    everything = (
        clients(load.post("/explain", *UPLOAD(files[0])), 4),
        clients(load.post("/predict/batch", *form(files, BATCH)), 2),
        clients(load.post("/v2/models/leukdetect/infer", "application/json", tensors(2)), 2),
    )
    loads: dict[str, tuple[Coroutine[Any, Any, object], ...]] = {
        "idle": (asyncio.sleep(seconds),),
        "300 %": (overload(1),),
        "everything": (overload(2), *everything),
        "large batches": (clients(load.post("/predict/batch", *form([bmp(files[0])], 40)), 2),),
    }
    rows = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as prober:
        prober.submit(int).result()  # it has started
        for name, coroutines in loads.items():
            probes = asyncio.wrap_future(prober.submit(probe, port, seconds))
            await asyncio.gather(*coroutines)
            latencies, other = await probes
            row = {"load": name, "n": len(latencies)}
            row |= {f"p{q}": round(1000 * load.percentile(latencies, q), 1) for q in (50, 99)}
            rows.append(row | {"slowest": round(1000 * latencies[-1], 1), "other": other})
    return rows


def probe(port: int, seconds: float) -> tuple[list[float], int]:
    """The latencies in seconds, ascending, and how many answers were not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    begun = time.perf_counter()
    latencies, other = [], 0
    for number in range(int(seconds / EVERY)):
        planned = begun + number * EVERY
        time.sleep(max(0.0, planned - time.perf_counter()))
        connection.request("GET", PATHS[number % len(PATHS)])
        answer = connection.getresponse()
        answer.read()
        latencies.append(time.perf_counter() - planned)
        other += answer.status != 200
    connection.close()
    return sorted(latencies), other


def bmp(file: bytes) -> bytes:
    """An image as a BMP file: 2.4 MB."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(file)).save(buffer, "BMP")
    return buffer.getvalue()


def form(files: Sequence[bytes], count: int) -> tuple[str, bytes]:
    """Content type and body of a form with `count` images."""
    head = 'Content-Disposition: form-data; name="file"; filename="image.jpg"\r\nContent-Type: image/jpeg'
    parts = [f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + files[each % len(files)] for each in range(count)]
    return f"multipart/form-data; boundary={BOUNDARY}", b"\r\n".join(parts) + f"\r\n--{BOUNDARY}--\r\n".encode()


def tensors(images: int) -> bytes:
    """An inference request of images of 224 pixels, as JSON: 1.5 MB for two, near the most that the server reads."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [images, 224, 224, 3], "data": [128] * images * 224**2 * 3}
    return json.dumps({"inputs": [tensor]}).encode()


if __name__ == "__main__":
    stage.guard(main)
