"""Would OpenVINO answer faster than onnxruntime here? Both on the files that serve, in turns, in one process.

OpenVINO runs the file as it is, and after onnxruntime's constant folding, since it does not fold what tf2onnx makes of
batch normalisation; with one stream (latency hint) and with a stream a thread (throughput hint, each image on its own);
in float32, and FP32 in bfloat16 too, which it takes by itself where the processor has it. It computes the outputs of an
answer, as the server does. Each is held against the golden set first; what does not agree is timed all the same, and
marked. Speed and processor time are ratios of the same turn: median and quartiles.

Reads:  FOLDER/leukdetect.onnx, FOLDER/leukdetect.int8.onnx (of python -m benchmarks.model224)
Writes: benchmarks/results/engines.json
Run:    python -m benchmarks.serving --setup, then .benchmarks/openvino/bin/python -m benchmarks.engines
"""

import argparse
import base64
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.process import machine
from leukdetect import contract, images, runtime
from leukdetect.contract import ANSWER, FILES
from pipeline import stage
from pipeline.stage import Problem

ROOT = Path(__file__).parents[1]
BATCHES = (1, 4)  # alone, and what the server takes at most
OURS = "onnxruntime"
HOW = "`python -m benchmarks.serving --setup` makes an environment that has it: .benchmarks/openvino/bin/python"

Run = Callable[[np.ndarray], list[np.ndarray]]  # uint8 [N, S, S, 3] to the outputs of ANSWER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".benchmarks/model224"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/engines.json")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if importlib.util.find_spec("openvino") is None:
        raise Problem(f"openvino is not installed here, so there is nothing to compare. {HOW}")
    rows = []
    print(
        "| | threads | golden set | batch | ms | speed ÷ onnxruntime's | processor time ÷ |", "|---" * 7 + "|", sep="\n"
    )
    for precision, name in FILES.items():
        for threads in (2, 1):
            for row in compared(options.models / name, precision, threads, options.rounds):
                rows.append(row)
                golden = f"{row['golden']:.1g}" if row["agrees"] else f"**{row['golden']:.2f}: wrong**"
                speed, cpu = ("{1:.2f} ({0:.2f}–{2:.2f})".format(*row[key]) for key in ("speed", "cpu"))
                print(
                    f"| {precision.upper()}, {row['engine']} | {threads} | {golden} | {row['batch']} | {row['ms']:.1f} "
                    f"| {speed} | {cpu} |",
                    flush=True,
                )
    import openvino

    versions = {"openvino": openvino.__version__, "onnxruntime": onnxruntime.__version__}
    stage.write_json(options.out, {"machine": machine(), "versions": versions, "rows": rows})


def compared(path: Path, precision: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each engine and batch.

    Raises:
        Problem: the model file is not there.
    """
    if not path.is_file():
        raise Problem(f"{path} is missing; `python -m benchmarks.model224 --out {path.parent}` makes it")
    session = runtime.open_session(path, threads)
    promise = contract.parse(contract.metadata_of(session))
    golden = [base64.b64decode(item.image) for item in promise.golden]
    pixels = np.stack([images.sized(each, promise.decode.size, promise.decode.scaled) for each in golden])
    expected = np.array([item.probabilities for item in promise.golden])
    with tempfile.TemporaryDirectory() as folder:
        folded = _folded(path, Path(folder) / "folded.onnx")
        engines: dict[str, Run] = {
            OURS: partial(runtime.run, session, outputs=ANSWER),
            "OpenVINO, the file as it is": _alone(path, threads, "f32"),
            "OpenVINO, folded": _alone(folded, threads, "f32"),
            "OpenVINO, folded, a stream a thread": _streams(folded, threads),
        }
        if precision == "fp32":
            engines["OpenVINO, folded, bfloat16"] = _alone(folded, threads, "bf16")
    differences = {name: float(np.abs(run(pixels)[0] - expected).max()) for name, run in engines.items()}
    rows = []
    for batch in BATCHES:
        taken = {name: [_timed(run, pixels[:batch])] for name, run in engines.items()}  # the first warms up
        for number in range(rounds):
            names = list(engines)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                taken[name].append(_timed(engines[name], pixels[:batch]))
        for name in engines:
            wall, cpu = (np.array([each[part] for each in taken[name][1:]]) for part in (0, 1))
            own, own_cpu = (np.array([each[part] for each in taken[OURS][1:]]) for part in (0, 1))
            row = {"precision": precision, "threads": threads, "engine": name, "batch": batch}
            row |= {"golden": differences[name], "agrees": differences[name] <= promise.golden_tolerance}
            row |= {
                "ms": 1000 * float(np.median(wall)),
                "speed": _quartiles(own / wall),
                "cpu": _quartiles(cpu / own_cpu),
            }
            rows.append(row)
    return rows


def _folded(path: Path, out: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return out


def _compiled(path: Path, threads: int, hint: str, precision: str) -> Any:
    import openvino

    core = openvino.Core()
    whole = core.read_model(path)
    wanted = {output.get_any_name(): output.node.input_value(0) for output in whole.outputs}
    model = openvino.Model([wanted[name] for name in ANSWER], whole.get_parameters(), "answer")
    settings = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    return core.compile_model(model, "CPU", settings)


def _alone(path: Path, threads: int, precision: str) -> Run:
    request = _compiled(path, threads, "LATENCY", precision).create_infer_request()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        request.infer({0: pixels}, share_inputs=True)
        return [np.array(request.get_output_tensor(index).data) for index in range(len(ANSWER))]

    return run


def _streams(path: Path, threads: int) -> Run:
    import openvino

    compiled = _compiled(path, threads, "THROUGHPUT", "f32")
    queue = openvino.AsyncInferQueue(compiled, compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    answers: dict[int, list[np.ndarray]] = {}

    def keep(request: Any, index: int) -> None:
        answers[index] = [np.array(request.get_output_tensor(output).data) for output in range(len(ANSWER))]

    queue.set_callback(keep)

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        for index in range(len(pixels)):
            queue.start_async({0: pixels[index : index + 1]}, index)
        queue.wait_all()
        return [
            np.concatenate([answers[index][output] for index in range(len(pixels))]) for output in range(len(ANSWER))
        ]

    return run


def _timed(run: Run, pixels: np.ndarray) -> tuple[float, float]:
    """Seconds, and seconds of processor time of all threads."""
    started, cpu = time.perf_counter(), time.process_time()
    run(pixels)
    return time.perf_counter() - started, time.process_time() - cpu


def _quartiles(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in np.percentile(values, (25, 50, 75))]


if __name__ == "__main__":
    stage.guard(main)
