"""What a test reads of a process's memory is the process's own."""

import subprocess
import sys

import numpy as np

from tests.memory import forget_peak, peak, resident
from tests.project import ROOT


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    held = np.ones(400_000_000, np.uint8)
    told = "from tests.memory import peak; print(peak())"
    child = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(child.stdout) < 100e6 < held.nbytes < peak()


def test_a_peak_that_is_forgotten_begins_again() -> None:
    """Whatever earlier tests of this process took: only what is held from here on is compared."""
    np.ones(400_000_000, np.uint8)
    before = peak()
    forget_peak()
    begun = resident()
    assert begun - 50e6 < peak() < before - 300e6
    held = np.ones(400_000_000, np.uint8)
    assert begun + held.nbytes - 100e6 < peak() < begun + held.nbytes + 100e6
