"""Decodes off the event loop, in a small pool with a bound of its own."""

import queue
import threading
from collections import deque
from collections.abc import Callable

from PIL import Image

from serving import problems

Job = Callable[[], None]


class DecodePool:
    """A few threads that decode; at most `waiting` more images wait for one.

    Of the idle threads the last to finish is the next to start, since its caches are warm; and no other is woken, which
    the queue of `concurrent.futures` does with every job.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        Image.init()  # else Pillow looks for its plugins at the first odd upload, which then waits a third of a second
        self._most_waiting = waiting
        self._waiting: deque[Job] = deque()
        self._inboxes: list[queue.SimpleQueue[Job | None]] = [queue.SimpleQueue() for _ in range(threads)]
        self._idle = list(self._inboxes)
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=[inbox], name=f"decode_{number}", daemon=True)
            for number, inbox in enumerate(self._inboxes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Has a thread do it; it must not raise.

        Raises:
            ProblemError: 503 at once when the pool is full.
        """
        with self._lock:
            if self._idle:
                self._idle.pop().put(job)
            elif len(self._waiting) < self._most_waiting:
                self._waiting.append(job)
            else:
                raise problems.overloaded("Too many images wait to be decoded. Try again in a second.")

    def close(self) -> None:
        """Waits for what is being decoded."""
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, inbox: queue.SimpleQueue[Job | None]) -> None:
        while job := inbox.get():
            job()
            with self._lock:
                if self._waiting:
                    inbox.put(self._waiting.popleft())
                else:
                    self._idle.append(inbox)
            del job  # while this waits, it must not keep an upload alive
