"""The servers that are compared: how each is installed, started and asked, and how it was tuned.

All peers share peers/classifier.py: Pillow, and onnxruntime's defaults (in one OpenVINO) with a thread for every
processor. `tuning` says what was chosen where a server's docs leave a choice: in short trials on two cores, one worker
with two threads and batches was as fast with 8 clients as two workers with one thread each, and much faster with one.
"""

import base64
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.process import Running, ServerError, free_port, running
from leukdetect.contract import FILES

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks/peers"
OURS = ROOT / ".venv-serving/bin/python"
BOUNDARY = "benchmark-boundary"

Encode = Callable[[bytes], tuple[str, bytes]]  # an image file to content type and body
Read = Callable[[Any], list[float]]  # the JSON of an answer to probabilities in class order


def _form(name: str) -> Encode:
    head = f'Content-Disposition: form-data; name="{name}"; filename="image.jpg"\r\nContent-Type: image/jpeg'
    before, after = f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode(), f"\r\n--{BOUNDARY}--\r\n".encode()
    return lambda image: (f"multipart/form-data; boundary={BOUNDARY}", before + image + after)


def _json(wrap: Callable[[str], object]) -> Encode:
    return lambda image: ("application/json", json.dumps(wrap(base64.b64encode(image).decode())).encode())


def _open_inference(image: str) -> object:
    text = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    return {"inputs": [text | {"data": [image]}]}


UPLOAD = _form("file")


@dataclass(frozen=True, eq=False)
class Server:
    """One column of the tables."""

    name: str
    tuning: str
    environment: str | None  # peers/NAME.txt; None: this project's own
    command: tuple[str, ...]  # {port} and {folder}, an empty folder to run in, are filled in
    ready: str
    path: str = "/predict"
    precision: str = "fp32"
    encode: Encode = UPLOAD
    read: Read = lambda answer: list(answer["probabilities"])
    prepare: tuple[str, ...] = ()  # a command to run before
    variables: Mapping[str, str] = field(default_factory=dict)
    code: Path = ROOT  # of this project's own server


def _ours(precision: str) -> Server:
    return Server(
        f"LeukDetect {precision.upper()}",
        "as it starts: a lone image on all processors, several on one each (INT8) or in batches up to 4 (FP32)",
        None,
        ("python", "-m", "serving", "--port", "{port}", "--cache-dir", "{folder}/cache"),
        "/readyz",
        precision=precision,
        read=lambda answer: list(answer["probabilities"].values()),
    )


NAIVE = Server(
    "naive FastAPI",
    "one uvicorn worker (uvloop, httptools)",
    "naive",
    ("uvicorn", "naive_app:app", "--app-dir", str(PEERS), "--port", "{port}"),
    "/health",
)
_PEERS = (
    Server(
        "BentoML",
        "adaptive batching up to 8, one worker",
        "bentoml",
        ("bentoml", "serve", "bentoml_service:Classifier", "--working-dir", str(PEERS), "--port", "{port}"),
        "/readyz",
        encode=_form("images"),
        read=lambda answer: list(answer[0]),
        variables={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{folder}"},
    ),
    Server(
        "LitServe",
        "batches up to 8 within 1 ms, one worker",
        "litserve",
        ("python", str(PEERS / "litserve_app.py")),
        "/health",
    ),
    Server(
        "MLServer",
        "adaptive batching up to 8 within 1 ms, in the server's own process",
        "mlserver",
        ("mlserver", "start", "{folder}"),
        "/v2/health/ready",
        "/v2/models/leukdetect/infer",
        encode=_json(_open_inference),
        read=lambda answer: list(answer["outputs"][0]["data"]),
        variables={
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "0",
            "MLSERVER_METRICS_ENDPOINT": "",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_MODEL_NAME": "leukdetect",
            "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_runtime.Classifier",
            "MLSERVER_MODEL_MAX_BATCH_SIZE": "8",
            "MLSERVER_MODEL_MAX_BATCH_TIME": "0.001",
        },
    ),
    Server(
        "Ray Serve",
        "one replica, serve.batch up to 8 without waiting",
        "ray",
        ("python", str(PEERS / "ray_app.py")),
        "/-/healthz",
        "/",
        variables={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Server(
        "mlflow models serve",
        "pyfunc, one worker (its threads run predictions side by side)",
        "mlflow",
        ("mlflow", "models", "serve", "-m", "{folder}/model", "--env-manager", "local", "-p", "{port}", "-w", "1"),
        "/ping",
        "/invocations",
        encode=_json(lambda image: {"inputs": [image]}),
        read=lambda answer: list(answer["predictions"][0]),
        prepare=("python", str(PEERS / "mlflow_pyfunc.py"), "{folder}/model"),
        variables={"MLFLOW_DISABLE_TELEMETRY": "true"},
    ),
    Server(
        "Triton",
        "nvidia-pytriton: Triton's Python backend, dynamic batching up to 8 within 1 ms",
        "triton",
        ("python", str(PEERS / "triton_app.py")),
        "/v2/models/leukdetect/ready",
        "/v2/models/leukdetect/infer",
        encode=_json(_open_inference),
        read=lambda answer: list(answer["outputs"][0]["data"]),
        # Its backend loads libpython from the system, which may be another 3.11 than the environment's.
        variables={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"), "HOME": "{folder}", "TMPDIR": "{folder}"},
    ),
    NAIVE,
    replace(
        NAIVE,
        name="naive OpenVINO",
        tuning="the naive app with OpenVINO: latency hint, a thread for each processor, float32",
        environment="openvino",
        variables={"ENGINE": "openvino", "HOME": "{folder}"},  # it writes an id below the home, and reports it
    ),
)
# Each with either file, so that what ours gains is the server's and not the file's.
SERVERS = (
    *(_ours(precision) for precision in FILES),
    *(
        replace(peer, name=f"{peer.name} {precision.upper()}", precision=precision)
        for peer in _PEERS
        for precision in FILES
    ),
)


def install(server: Server, environments: Path) -> list[str]:
    """Makes the peer's environment if it is not there, and returns every package in it with its version.

    Raises:
        ServerError: the installation failed.
    """
    if server.environment is None:
        return _uv("pip", "freeze", "--python", str(OURS)).splitlines()
    folder = environments / server.environment
    if not (folder / "ready").exists():
        _uv("venv", "--clear", "--python", sys.executable, str(folder))
        requirements = PEERS / f"{server.environment}.txt"
        _uv("pip", "install", "--python", str(folder), "-r", str(requirements))
        (folder / "ready").touch()
    return _uv("pip", "freeze", "--python", str(folder)).splitlines()


@contextmanager
def started(server: Server, model: Path, environments: Path, folder: Path, **variables: str) -> Iterator[Running]:
    """Runs a server with a model file, in an empty folder, until the block ends.

    Args:
        variables: more for its environment.

    Raises:
        ServerError: it did not start.
    """
    port = free_port()

    def fill(text: str) -> str:
        return text.format(port=port, folder=folder)

    # Nothing of whoever runs the benchmark changes a server.
    inherited = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    environment = inherited | {fill(name): fill(value) for name, value in {**server.variables, **variables}.items()}
    if server.environment is None:
        command = [str(OURS), *map(fill, server.command[1:]), "--model", str(model)]
        environment |= {"PATH": os.defpath, "PYTHONPATH": str(server.code)}
    else:
        binaries = environments / server.environment / "bin"
        command = [str(binaries / server.command[0]), *map(fill, server.command[1:])]
        environment |= {"PATH": f"{binaries}:{os.defpath}", "PYTHONPATH": str(PEERS), "PORT": str(port)}
        environment |= {"MODEL": str(model)}
        if server.prepare:
            before = [str(binaries / server.prepare[0]), *map(fill, server.prepare[1:])]
            done = subprocess.run(before, env=environment, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise ServerError(f"its preparation failed: …{done.stderr[-800:]}")
    with running(command, port, server.ready, environment, folder, folder / "server.log") as process:
        yield process


def _uv(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"uv {arguments[0]} {arguments[1]} failed: {done.stderr.strip()[-800:]}")
    return done.stdout
