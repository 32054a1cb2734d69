"""A process of its own for what strangers have a say in: it answers in JSON, and is ended when its budget is spent.

child = Child("leukdetect.exchange")  # a module that calls `serve`
answer = child.ask({"alias": "champion"}, seconds=30)
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

MOST_BYTES = 1_000_000  # of an answer
NICE = 5  # beside another process that wants a processor, a child gets a quarter of it


class EndedError(Exception):
    """The child has no answer: the message says what it did."""


class Child:
    """The process. It starts with the first question, keeps what it has imported, and ends with this process."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer.

        Raises EndedError: it took longer than `seconds` in all, or crashed; the next question starts it again.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._start()
            process = self._process
            assert process
            assert process.stdin
            assert process.stdout
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, end)
            timer.daemon = True  # else this process could not end before it
            timer.start()
            try:
                with contextlib.suppress(OSError):  # it has ended already
                    process.stdin.write(json.dumps(question).encode() + b"\n")
                    process.stdin.flush()
                line = process.stdout.readline(MOST_BYTES)
            finally:
                timer.cancel()
            if line.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is ending: its own code says why
                process.wait(1)
            code = self._end()
        if late.is_set():
            raise EndedError(f"took longer than {seconds:g} s")
        if code == -getattr(signal, "SIGXCPU", 0):
            raise EndedError("used up its processor time")
        raise EndedError(f"crashed its process (exit code {code})")

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        if process := self._process:
            process.kill()  # so that whoever waits for its answer lets go of the lock
        with self._lock:
            self._end()

    def _start(self) -> None:
        root = str(Path(__file__).parents[1])  # this process may have found it otherwise than by its environment
        # An arena of 64 MB for each thread would count against its memory.
        own = {"PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(self.close)

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        atexit.unregister(self.close)
        process.kill()
        with contextlib.suppress(OSError):  # what it was not sent is lost
            process.communicate()
        return process.returncode


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The child's side: answers questions until whoever asks is gone, even in the middle of an answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    questions: SimpleQueue[bytes] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            questions.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            answers.write(json.dumps(answer(json.loads(questions.get()))).encode() + b"\n")
            answers.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # an ordinary end would wait for the thread that listens


def limit(memory: int, seconds: int | None = None, *, files: bool = True) -> None:
    """Limits this process from now on, where the system can.

    Args:
        memory: bytes more than it has.
        seconds: of processor time.
        files: whether it may write any.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limits = {resource.RLIMIT_AS: memory + pages * resource.getpagesize(), resource.RLIMIT_CORE: 0}
    if seconds is not None:
        limits[resource.RLIMIT_CPU] = seconds
    if not files:
        limits[resource.RLIMIT_FSIZE] = 0
    for kind, most in limits.items():
        with contextlib.suppress(ValueError):  # a lower one holds already, or the system does not have it (macOS)
            resource.setrlimit(kind, (most, most + 1))
