"""What benchmarks/training.py says of several seeds, and of a stage's memory."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training import anonymous, over_seeds


def test_the_interval_over_seeds_holds_what_groups_and_what_seeds_do() -> None:
    rng = np.random.default_rng(1)
    centres = np.array([[0.10], [-0.02], [0.01]])
    alike = over_seeds(np.hstack([[[0.03]] * 3, rng.normal(0.03, 0.01, (3, 1000))]))
    apart = over_seeds(np.hstack([centres, centres + rng.normal(0, 0.01, (3, 1000))]))
    assert alike.value == apart.value == pytest.approx(0.03)
    # Of three seeds drawn with replacement the squared shares sum to 5/9 in the mean; seeds that disagree widen it.
    assert alike.high - alike.low == pytest.approx(2 * 1.96 * 0.01 * 5**0.5 / 3, rel=0.1)
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


def test_one_seed_has_the_interval_of_its_groups() -> None:
    found = over_seeds(np.array([[0.0, *np.linspace(-0.1, 0.1, 1000)]]))
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -0.095, 0.095), abs=1e-3)


def test_anonymous_memory_is_what_linux_tells_and_none_once_the_process_has_ended() -> None:
    told = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert told
    assert anonymous(os.getpid()) == pytest.approx(int(told[1]) * 1024, rel=0.05)
    child = subprocess.Popen(["sleep", "60"])
    child.kill()
    child.wait()
    assert anonymous(child.pid) == 0
