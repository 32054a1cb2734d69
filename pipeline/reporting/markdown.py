"""Numbers and tables as the run's documents write them."""

from collections.abc import Iterable
from typing import Any

SYNTHETIC = "SYNTHETIC DEMO: no clinical meaning"


def percent(share: float) -> str:
    """A share for people, without the noise of floats: `95%`, `0.2%`, `99.5%`."""
    return f"{100 * share:.6g}%"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown; a row is its cells."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
