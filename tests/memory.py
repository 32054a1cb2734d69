"""Memory of a process, as Linux tells it."""

import re
from pathlib import Path


def resident(pid: int | str = "self") -> int:
    """Bytes that the process has in memory now."""
    return _told(pid, "VmRSS")


def peak(pid: int | str = "self") -> int:
    """Bytes that the process had in memory at most.

    Not by `ru_maxrss`, which begins with what the process that started it held.
    """
    return _told(pid, "VmHWM")


def forget_peak() -> None:
    """Lets this process's peak begin again with what it holds now: what an earlier test took is no peak of this one."""
    Path("/proc/self/clear_refs").write_text("5")


def _told(pid: int | str, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    if not kilobytes:  # a zombie has none
        raise ProcessLookupError(f"process {pid} has ended")
    return int(kilobytes[1]) * 1024
