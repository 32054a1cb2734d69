"""Work that is done ahead of whoever takes its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Begun = TypeVar("Begun")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], begin: Callable[[Item], Begun], end: Callable[[Begun], Result], most: Callable[[], float]
) -> Iterator[Result]:
    """Yields end(begin(item)) in the order of the items, with up to `most()` of them begun beyond the one it yields.

    `pool.map` runs through all items however slowly the results are taken; this one never holds more than it must.
    """
    under_way: deque[Begun] = deque()
    for item in items:
        under_way.append(begin(item))
        while len(under_way) > most():
            yield end(under_way.popleft())
    while under_way:
        yield end(under_way.popleft())
