"""The whole path: `dvc repro`, the server on the registered champion, and one held-out image asked about.

Run:    python -m pipeline.demo [--port 8000] [--once]
"""

import argparse
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import requests

from pipeline import params, stage
from pipeline.data import prepared
from pipeline.data.source import RAW
from pipeline.model_file.onnx_model import FP32
from pipeline.registry.versions import REPORTS
from pipeline.stage import Problem

SERVER_PYTHON = Path(".venv-serving/bin/python")  # no TensorFlow in there
START_TIMEOUT = 60  # seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--port", type=int, default=8000)
    arguments.add_argument("--once", action="store_true", help="stop after the answer")
    options = arguments.parse_args()

    if (source := params.load().fetch.source) != "demo":
        raise Problem(
            f"params.yaml is no longer the demo's (fetch.source: {source}). Make a recipe of its own with `python -m "
            "pipeline.presets demo mine`, move params.yaml and gate.yaml to recipes/mine/, and have the demo's again "
            "with: git checkout params.yaml gate.yaml"
        )
    started = time.monotonic()
    if _repro() != 0:
        raise Problem("`dvc repro` did not finish; what it printed last says why")
    print(f"\nthe pipeline took {time.monotonic() - started:.0f} s")
    made = json.loads((REPORTS / "registration.json").read_text())

    address = f"http://localhost:{options.port}"
    # In a changed tree and on a branch no alias moves.
    model = f"models:/{made['name']}@{made['alias']}" if made["alias"] else str(FP32)
    environment = {"LEUKDETECT_MODEL": model} | os.environ | {"LEUKDETECT_PORT": str(options.port)}
    server = subprocess.Popen([SERVER_PYTHON, "-m", "serving"], env=environment)
    try:
        _wait_until_ready(server, address)
        rows = prepared.read()[1]
        image = RAW / prepared.held_out(rows)["path"].iloc[0]
        with image.open("rb") as file:
            answer = requests.post(f"{address}/predict", files={"file": file}, timeout=30)
        answer.raise_for_status()
        seen = "the model learnt from, as from all" if (rows["split"] == "train").all() else "the model has never seen"
        print(f"\nPOST /predict with {image}, which {seen}:")
        print(json.dumps(answer.json(), indent=2, ensure_ascii=False))
        print(
            f"\npage      {address}/\nAPI       {address}/docs\nmetrics   {address}/metrics\n"
            f"MLflow    make mlflow-ui, then http://localhost:5000\n"
            "git       dvc.lock and reports/headline.json are of what this machine made; git checkout has ours again"
        )
        if not options.once:
            print("\nserving until Ctrl-C", flush=True)
            server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def _repro() -> int:
    """`dvc repro` in a process group of its own, since the stage that it runs must end too, and does not by itself."""
    process = subprocess.Popen(["dvc", "repro"], process_group=0)
    try:
        return process.wait()
    except BaseException as error:
        os.killpg(process.pid, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        process.wait()
        raise


def _wait_until_ready(server: subprocess.Popen, address: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise Problem(f"the server stopped with exit code {server.returncode}; is port {address[-4:]} in use?")
        try:
            if requests.get(f"{address}/readyz", timeout=2).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise Problem(f"the server was not ready within {START_TIMEOUT} s")


if __name__ == "__main__":
    stage.guard(main)
