"""Every backbone: its latency, and its accuracy on the demo when trained from random weights.

Latency is of the whole exported graph at 224 px, batch 1, FP32 and INT8; its weights do not matter and are random.
The files take turns, one answer each, so that other load on the machine affects all alike. Accuracy is measured by the
stages from `prepare` to `evaluate` on the rendered smears, at 80 px (InceptionV3 takes no less than 75), from random
weights: which network learns fastest from 600 images. It says nothing about pretrained weights, nor about patients.

Reads:  params.yaml, data/raw/, data/manifest.csv, data/source.json (of the demo)
Writes: benchmarks/results/backbones.json
Run:    python -m benchmarks.backbones [--latency-only]     (about 45 minutes, latency alone 5; a quiet machine)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.servers import ROOT
from leukdetect.runtime import cpus, open_session, run
from pipeline import params, stage
from pipeline.model_file import calibration, graph, quantise
from pipeline.network import classifier, to_onnx
from pipeline.network.backbones import BACKBONES
from pipeline.stage import Problem

SIZE, DEMO_SIZE = 224, 80
DATA = ("data/raw", "data/manifest.csv", "data/source.json")
STAGES = ("prepare", "features", "train_head", "fine_tune", "calibrate", "export", "evaluate")
REFERENCE = ("ResNet50", "fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="answers of each file")
    parser.add_argument("--latency-only", action="store_true", help="keep the accuracies measured before")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/backbones.json")
    options = parser.parse_args()
    os.chdir(ROOT)

    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        latency = latencies(Path(folder), options.rounds)
        for name in BACKBONES:
            results[name] = results.get(name, {}) | latency[name]
            if not options.latency_only:
                results[name] |= accuracy(Path(folder) / name, name)
            stage.write_json(options.out, results)
    print(table(results))


def latencies(folder: Path, rounds: int) -> dict[str, Any]:
    """Each backbone's parameters, and each file's MB, median ms and median ratio to ResNet-50 in FP32."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)
    results: dict[str, Any] = {}
    files: dict[tuple[str, str], Path] = {}
    for name in BACKBONES:
        whole = classifier.build(SIZE, 4, name)
        width, low_level = (maps.shape[-1] for maps in (classifier.feature_maps(whole), classifier.low_level(whole)))
        space = calibration.fit_unlikeness(rng.random((80, low_level)), rng.integers(0, 4, 80), 64)
        proto = to_onnx.to_onnx(graph.contract_function(whole, 1.0, space), SIZE, whole.weights)
        results[name] = {"parameters": whole.count_params(), "embedding": width}
        for precision, made in (("fp32", proto), ("int8", quantise.quantise(proto, images))):
            files[name, precision] = folder / f"{name}.{precision}.onnx"
            files[name, precision].write_bytes(made.SerializeToString())

    sessions = {key: open_session(path, cpus()) for key, path in files.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
    for number in range(-3, rounds):  # three to warm up
        keys = list(sessions)
        for key in (keys[i] for i in rng.permutation(len(keys))):
            started = time.perf_counter()
            run(sessions[key], images[:1], ("probabilities", "embedding", "unlikeness"))
            if number >= 0:
                times[key].append(1000 * (time.perf_counter() - started))
    for (name, precision), mine in times.items():
        ratios = [ours / reference for ours, reference in zip(mine, times[REFERENCE], strict=True)]
        low, high = np.quantile(ratios, (0.25, 0.75))
        results[name][precision] = {
            "mb": files[name, precision].stat().st_size / 1e6,
            "ms": statistics.median(mine),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [float(low), float(high)],
        }
    return results


def accuracy(folder: Path, name: str) -> dict[str, Any]:
    """Runs the stages on the demo in a folder of their own.

    Raises:
        Problem: the demo has not been made, or a stage failed (it has said why).
    """
    recipe = yaml.safe_load(Path("presets/demo.yaml").read_text())
    recipe["model"] |= {"backbone": name, "last_layer": None}
    recipe["prepare"]["image_size"] = DEMO_SIZE
    (folder / "data").mkdir(parents=True)
    (folder / params.PARAMS_FILE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    for path in DATA:
        if not Path(path).exists():
            raise Problem(f"{path} is missing; `make demo ONCE=1` makes it")
        (folder / path).symlink_to(Path(path).resolve())

    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    started = time.monotonic()
    for each in STAGES:
        if subprocess.run([sys.executable, "-m", f"pipeline.{each}"], cwd=folder, env=environment).returncode:
            raise Problem(f"pipeline.{each} failed with {name}; what it printed says why")
    found = json.loads((folder / "reports/metrics.json").read_text())
    return {"seconds": time.monotonic() - started, "demo": {p: found[p]["balanced_accuracy"] for p in ("fp32", "int8")}}


def table(results: dict[str, Any]) -> str:
    """Markdown; latencies as a ratio to ResNet-50 in FP32, with their quartiles."""
    lines = [
        "| | parameters | FP32 MB | FP32 ms, ratio | INT8 ms, ratio | demo from scratch, FP32 | INT8 |",
        "|---" * 7 + "|",
    ]
    for name, each in results.items():
        times = [
            f"{each[p]['ms']:.0f}, {each[p]['ratio']:.2f} ({each[p]['ratio_quartiles'][0]:.2f}–"
            f"{each[p]['ratio_quartiles'][1]:.2f})"
            for p in ("fp32", "int8")
        ]
        demo = [_interval(each.get("demo", {}).get(p)) for p in ("fp32", "int8")]
        cells = [name, f"{each['parameters'] / 1e6:.1f} M", f"{each['fp32']['mb']:.0f}", *times, *demo]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    stage.guard(main)
