"""This machine's processors, and onnxruntime: the one way to open a session and to run it."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

_ONLY_WHAT_IS_ASKED_FOR = onnxruntime.RunOptions()
_ONLY_WHAT_IS_ASKED_FOR.add_run_config_entry("only_execute_path_to_fetches", "1")


def open_session(
    model: Path | bytes, threads: int | None = None, weights: Mapping[str, np.ndarray] | None = None
) -> onnxruntime.InferenceSession:
    """Opens a model file, or a serialised graph. Errors are onnxruntime's own, which share no base class.

    Args:
        threads: for one caller on a machine that others share; None: onnxruntime's own choice, for a batch job.
        weights: initializers whose values the graph stores as external.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Worker threads spin for 20 µs between two operators before they sleep, since waking up takes longer than most
        # operators run. That gains a tenth in INT8 and 4 % in FP32 with one client; longer spins would take processor
        # time from the decoders and from neighbours.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, pixels: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
    """Runs uint8 [N, S, S, 3] and returns the named outputs; nodes that only other outputs need are skipped."""
    answers: list[np.ndarray] = session.run(list(outputs), {"image": pixels}, _ONLY_WHAT_IS_ASKED_FOR)
    return answers


def cpus() -> int:
    """Number of processors that this process may use: its affinity mask, capped by a cgroup quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2
        if quota != "max":
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 quota
    return max(1, allowed)


def processor() -> dict[str, str]:
    """What Linux says of the first processor, such as its `model name` and `flags`; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.is_file() else ""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
