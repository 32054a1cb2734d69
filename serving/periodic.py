"""Work that is done again and again beside the requests: drift, history, updates, feedback, keys."""

import logging
import random
import threading
from collections.abc import Callable

_CHANCE = random.SystemRandom()  # not the seeded generator, which others may rely on

log = logging.getLogger(__name__)


class Periodic:
    """A thread that calls `work` every `seconds`; a call that fails is logged, and the next comes all the same."""

    def __init__(self, name: str, seconds: float, work: Callable[[], object], jitter: float = 0) -> None:
        """`seconds`: 0 means only when woken; `jitter`: the share by which a pause may be longer or shorter."""
        self._name, self._seconds, self._work, self._jitter = name, seconds, work, jitter
        self._woken = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins with a pause."""
        self._thread.start()

    def wake(self) -> None:
        """Cuts the present pause short."""
        self._woken.set()

    def stop(self, timeout: float | None = None) -> bool:
        """Waits for a call that is under way, at most `timeout` seconds; returns whether the thread has ended."""
        self._stopped = True
        self._woken.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def pause(self) -> float | None:
        """Seconds until the next call; None: until it is woken."""
        return self._seconds * _CHANCE.uniform(1 - self._jitter, 1 + self._jitter) or None

    def _run(self) -> None:
        while True:
            self._woken.wait(self.pause())
            self._woken.clear()
            if self._stopped:
                return
            try:
                self._work()
            except Exception:
                log.exception("%s failed", self._name)
