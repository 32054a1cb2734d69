"""Whether memory stays flat: under load for minutes, and over many swaps of the real network under load.

A registry in a SQLite file holds two versions of the same files; the alias goes back and forth between them. Four
clients send requests throughout, and every answer must be a 200.

Writes: benchmarks/results/soak.json
Run:    python -m benchmarks.soak --models FOLDER [--seconds 600] [--swaps 20]     (FOLDER: of benchmarks.model224)
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow

from benchmarks import load, pictures, report
from benchmarks.process import Running, free_port, running
from benchmarks.report import Verdict
from benchmarks.servers import OURS, ROOT, UPLOAD
from leukdetect.contract import FILES, SHA256_TAGS
from pipeline import stage

CLIENTS = 4
FLAT = 1.05  # the last third's memory ÷ the first third's; more is growth
SAMPLE_SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".benchmarks/model224"), help="where the .onnx files are")
    parser.add_argument("--images", type=Path, default=Path(".benchmarks/images"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/soak.json")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--swaps", type=int, default=20)
    options = parser.parse_args()
    files = [path.read_bytes() for path in pictures.jpegs("224x224", options.images)]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        client, versions = registry(folder, options.models.resolve())
        with serving(folder) as (server, key):
            requests = [load.post("/predict", *UPLOAD(file), f"X-API-Key: {key}\r\n") for file in files]
            soaked = asyncio.run(measured(server, requests, key, client, versions, options.seconds, swaps=0))
            swapped = asyncio.run(measured(server, requests, key, client, versions, 0, swaps=options.swaps))

    verdicts = []
    for what, (megabytes, statuses) in {"soak": soaked, f"{options.swaps} swaps": swapped}.items():
        third = max(1, len(megabytes) // 3)
        first, last = statistics.median(megabytes[:third]), statistics.median(megabytes[-third:])
        other = sum(count for status, count in statuses.items() if status != "200")
        print(
            f"{what}: RSS {first:.0f} MB in the first third, {last:.0f} MB in the last, "
            f"{max(megabytes):.0f} MB at most; answers {statuses}"
        )
        verdicts += [
            Verdict(f"{what}: memory, last third ÷ first", last / first, [], f"≤ {FLAT}", last / first <= FLAT),
            Verdict(f"{what}: answers other than 200", other, [], "= 0", other == 0),
        ]
    print(report.as_markdown(verdicts))
    cells = {"soak": soaked[0], "swaps": swapped[0]}
    stage.write_json(options.out, {"rss_mb": cells, "verdicts": report.as_json(verdicts)})


def registry(folder: Path, models: Path) -> tuple[mlflow.MlflowClient, list[str]]:
    """Two versions of the files, in a registry of their own; the first is champion."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.create_registered_model("leukdetect")
    versions = []
    tags = {tag: stage.sha256(models / FILES[precision]) for precision, tag in SHA256_TAGS.items()}
    for number in (1, 2):
        shutil.copytree(models, folder / f"source-{number}" / "artifacts")
        source = str(folder / f"source-{number}")
        versions.append(str(client.create_model_version("leukdetect", source, tags=tags).version))
    client.set_registered_model_alias("leukdetect", "champion", versions[0])
    return client, versions


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Running, str]]:
    """The server on that registry, and an administrator's key."""
    make_key: list[str | Path] = [OURS, "-m", "serving.keys", "soak", "--role", "admin", "--append", folder / "keys"]
    key = subprocess.run(make_key, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[0]
    port = free_port()
    command: list[str | Path] = [
        OURS,
        "-m",
        "serving",
        "--port",
        str(port),
        "--cache-dir",
        folder / "cache",
        "--watch-seconds",
        "0",
    ]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command += ["--keys-file", folder / "keys"]
    with running(command, port, "/readyz", environment, ROOT, folder / "server.log") as server:
        yield server, key


async def measured(
    server: Running,
    requests: list[bytes],
    key: str,
    client: mlflow.MlflowClient,
    versions: list[str],
    seconds: float,
    swaps: int,
) -> tuple[list[float], dict[str, int]]:
    """Memory in MB, every second or after every swap, while clients ask; and how their requests ended."""
    done = asyncio.Event()

    async def one_client() -> list[load.Answer]:
        connection, answers = load.Connection(), []
        while not done.is_set():
            for request in requests:
                answers.append(await connection.ask(server.port, request, time.perf_counter(), 30))
        connection.close()
        return answers

    asking = [asyncio.create_task(one_client()) for _ in range(CLIENTS)]
    megabytes = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        await asyncio.sleep(SAMPLE_SECONDS)
        megabytes.append(server.rss() / 1e6)
    for swap in range(swaps):
        await asyncio.to_thread(client.set_registered_model_alias, "leukdetect", "champion", versions[(swap + 1) % 2])
        reload = f"http://127.0.0.1:{server.port}/admin/reload"
        answer = await asyncio.to_thread(httpx.post, reload, headers={"X-API-Key": key}, timeout=60)
        if answer.json().get("result") != "switched":
            raise stage.Problem(f"swap {swap} was answered by {answer.text}")
        await asyncio.sleep(SAMPLE_SECONDS)
        megabytes.append(server.rss() / 1e6)
    done.set()
    answers = [answer for each in await asyncio.gather(*asking) for answer in each]
    return megabytes, load.Outcome(tuple(answers), 1.0).summary()["statuses"]


if __name__ == "__main__":
    stage.guard(main)
