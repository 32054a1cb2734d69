"""A scoring job of 100,000 images, killed twice: nothing lost, nothing twice, and no more memory than a small one."""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import tiny_model
from tests.conftest import require
from tests.memory import peak
from tests.project import ROOT

DISTINCT, FOLDERS = 1000, 100


def begin(images: Path, model: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.score", str(images), "--out", str(out), "--model", str(model)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def peak_memory(process: subprocess.Popen[bytes], enough: Callable[[], bool] = lambda: False) -> int:
    """Watches a process until its end, or until it is killed because there is `enough`; in bytes."""
    most = 0
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it ends just now
            most = peak(process.pid)
        if enough():
            process.kill()
            process.wait()
            return most
        time.sleep(0.02)
    assert process.returncode == 0
    return most


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_that_is_killed_twice_ends_with_each_image_once_and_in_bounded_memory(tmp_path: Path) -> None:
    require(Path("/proc/self/status").is_file(), "memory is read from /proc, which this system lacks")
    tiny_model.write(model := tmp_path / "tiny.onnx")
    for folder in range(FOLDERS):
        (tmp_path / f"images/{folder:02}").mkdir(parents=True)
        for number in range(DISTINCT):
            path = tmp_path / f"images/{folder:02}/{number:03}.jpg"
            if folder == 0:
                colour = (number % 256, 255 - number % 256, number // 4)
                path.write_bytes(tiny_model.jpeg(colour, (32, 32)) + number.to_bytes(2, "big"))
            else:
                path.hardlink_to(tmp_path / f"images/00/{number:03}.jpg")
    few = peak_memory(begin(tmp_path / "images/00", model, tmp_path / "few"))

    out = tmp_path / "out"

    def parts(least: int) -> Callable[[], bool]:
        return lambda: len(list(out.glob("part-*.parquet"))) >= least

    peaks = [peak_memory(begin(tmp_path / "images", model, out), enough=parts(least)) for least in (3, 20)]
    kept = {path.name: path.stat().st_ino for path in out.glob("part-*.parquet")}
    assert 20 <= len(kept) < 50
    peaks.append(peak_memory(begin(tmp_path / "images", model, out)))

    assert {name: (out / name).stat().st_ino for name in kept} == kept  # nothing was done again
    table = pq.read_table(out, columns=["path", "sha256", "decision"])
    assert set(table["path"].to_pylist()) == {f"{f:02}/{n:03}.jpg" for f in range(FOLDERS) for n in range(DISTINCT)}
    assert len(table) == FOLDERS * DISTINCT
    assert set(Counter(table["sha256"].to_pylist()).values()) == {FOLDERS}
    assert table["decision"].null_count == 0
    print(f"peak memory in MiB: {few >> 20} for 1,000 images, {[most >> 20 for most in peaks]} for 100,000")
    assert max(peaks) < 1.25 * few, f"{peaks} bytes for 100,000 images, {few} for 1,000"
