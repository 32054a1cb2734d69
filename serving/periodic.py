"""Work that is done again and again beside the requests: drift, history, updates, feedback, keys."""

import logging
import random
import threading
import time
from collections.abc import Callable

_CHANCE = random.SystemRandom()  # not the seeded generator, which others may rely on

log = logging.getLogger(__name__)


class Periodic:
    """A thread that calls `work` every `seconds`; a call that fails is logged, and the next comes all the same."""

    def __init__(self, name: str, seconds: float, work: Callable[[], object], jitter: float = 0) -> None:
        """`seconds`: 0 means only when woken; `jitter`: the share by which a pause may be longer or shorter."""
        self.name, self._seconds, self._work, self._jitter = name, seconds, work, jitter
        self._woken = threading.Event()
        self._stopped = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """False where the thread has ended though nobody stopped it: then only a restart helps."""
        return self._stopped or self._thread.ident is None or self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """How long the call that is under way has taken so far; 0 during a pause."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

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
        try:
            self._turns()
        except BaseException:  # `alive` tells
            log.critical("the thread %s has ended; only a restart brings it back", self.name, exc_info=True)

    def _turns(self) -> None:
        while True:
            self._woken.wait(self.pause())
            self._woken.clear()
            if self._stopped:
                return
            self._busy_since = time.monotonic()
            try:
                self._work()
            except Exception:
                log.exception("%s failed", self.name)
            finally:
                self._busy_since = None
