"""onnxruntime: the one way to open a session and to run it."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

_ONLY_WHAT_IS_ASKED_FOR = onnxruntime.RunOptions()
_ONLY_WHAT_IS_ASKED_FOR.add_run_config_entry("only_execute_path_to_fetches", "1")


def open_session(model: Path | bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Opens a model file, or a serialised graph. Whatever onnxruntime raises goes on: its errors share no base class.

    Args:
        threads: for one caller on a machine that others share; None: onnxruntime's own choice, for a batch job.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # How long its threads look for their next piece before they sleep, which takes them longer to wake from than
        # most pieces take. A little gives most of the gain (INT8 a tenth, FP32 4 % with one client) at no processor
        # time; more takes it from the decoders, and from whoever shares the machine.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, pixels: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
    """Uint8 [N, S, S, 3] to the named outputs, and computes nothing that only others need."""
    answers: list[np.ndarray] = session.run(list(outputs), {"image": pixels}, _ONLY_WHAT_IS_ASKED_FOR)
    return answers


def cpus() -> int:
    """The processors this process may use: its affinity mask, or fewer where a cgroup's quota says so."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2
        if quota != "max":
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no quota to be seen
    return max(1, allowed)
