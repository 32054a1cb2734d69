"""What a thread promises to the event loop."""

import asyncio
from collections.abc import Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Promise(Generic[T]):
    """A result that the event loop awaits and any thread may bring. Made on the event loop.

    `concurrent.futures.Future` does the same with a lock, a condition and a second future for the loop, for several
    times the processor time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[T] = self._loop.create_future()

    def __await__(self) -> Generator[Any, None, T]:
        return self._future.__await__()

    @property
    def wanted(self) -> bool:
        """Whether somebody still awaits it."""
        return not self._future.done()

    def keep(self, result: T) -> None:
        """Brings the result. Of several calls the first counts."""
        self._settle(self._future.set_result, result)

    def fail(self, error: BaseException) -> None:
        """Brings an error."""
        self._settle(self._future.set_exception, error)

    def _settle(self, how: Any, what: object) -> None:
        try:
            self._loop.call_soon_threadsafe(self._if_wanted, how, what)
        except RuntimeError:
            if not self._loop.is_closed():  # if it is, nobody awaits anything
                raise

    def _if_wanted(self, how: Any, what: object) -> None:
        if self.wanted:
            how(what)
