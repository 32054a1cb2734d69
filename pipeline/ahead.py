"""Reads ahead: begins work on the next items while a result is being used; or works beside the caller."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Begun = TypeVar("Begun")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], begin: Callable[[Item], Begun], end: Callable[[Begun], Result], most: Callable[[], float]
) -> Iterator[Result]:
    """Yields end(begin(item)) in the order of the items; at most `most()` others are begun or wait to be taken.

    `pool.map` would begin all items at once and keep every result until it is taken.
    """
    under_way: deque[Begun] = deque()
    for item in items:
        under_way.append(begin(item))
        while len(under_way) > most():
            yield end(under_way.popleft())
    while under_way:
        yield end(under_way.popleft())


@contextmanager
def beside() -> Iterator[ThreadPoolExecutor]:
    """A thread that does one job after the other; those that it has not begun when the block ends are dropped."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
