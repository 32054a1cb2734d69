"""What a server and all that came of it use, while some of them end: nothing fails, and nothing is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks import process

LISTEN = """
import http.server, subprocess, sys
print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
BUSY_CHILD = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.5: pass"])
print(flush=True)
time.sleep(60)
"""


def test_processes_that_end_while_they_are_measured_count_nothing() -> None:
    parent = subprocess.Popen(["sh", "-c", "while :; do true & sleep 0; done"])
    try:
        until, seen = time.monotonic() + 2, set()
        while time.monotonic() < until:
            assert process.total(parent.pid, lambda each: each.memory_full_info().pss) > 0
            seen |= {each.pid for each in process.family(parent.pid)}
        assert len(seen) > 20, "children were to come and go"
    finally:
        parent.kill()
        parent.wait()
    assert process.family(parent.pid) == []
    assert process.total(parent.pid, lambda each: 1) == 0


def test_time_of_children_that_have_ended_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY_CHILD], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()
        try:
            assert 0.4 < process.Running(parent.pid, 0, 0).cpu_seconds() < 5
        finally:
            parent.kill()


def test_what_a_server_started_ends_with_it(tmp_path: Path) -> None:
    port = process.free_port()
    command = [sys.executable, "-c", LISTEN, str(port)]
    with process.running(command, port, "/", os.environ, tmp_path, tmp_path / "log") as server:
        left = int((tmp_path / "log").read_text().split()[0])
        assert [each.pid for each in process.family(server.pid)] == [server.pid, left]
        assert server.rss() > psutil.Process(server.pid).memory_info().rss
    until = time.monotonic() + 5
    while process.total(left, lambda each: each.memory_info().rss):  # a zombie, not yet waited for, holds nothing
        assert time.monotonic() < until
        time.sleep(0.01)
