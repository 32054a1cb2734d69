"""Tables and verdicts of the benchmarks: medians over the rounds, with their range. Every bar is a ratio."""

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

Cell = dict[str, Any]  # `server`, `size`, `load`, `round`, and what was measured

DEADLINE = 2.0  # seconds; the server's own default, and how long the clients of an open loop wait
CLIENTS = ("1 client", "8 clients")
SHARES = {f"{share} %": share / 100 for share in (50, 80, 100, 300)}  # of capacity
OVERLOAD = "300 %"
BARS = {"fp32": 1.0, "int8": 1.25}  # our throughput with 8 clients ÷ the best peer's with the same file
LOOP = "loop"
REFUSED, LATE = ("429", "503"), ("0", "504")


T = TypeVar("T")


def turns(compared: Iterable[T], number: int) -> list[T]:
    """What is compared, in the random order of this round; always the same."""
    order = list(compared)
    random.Random(number).shuffle(order)  # noqa: S311 (an order, no secret)
    return order


def ratio(rounds: Sequence[float]) -> str:
    """The median of the rounds' ratios and, in brackets, their range."""
    return f"{statistics.median(rounds):.3f} ({min(rounds):.3f}–{max(rounds):.3f})"


class At(NamedTuple):
    """A place in the tables."""

    server: str
    size: str
    load: str


class Spread(NamedTuple):
    """Median and range of one number over the rounds."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        digits = 1 if self.median < 100 else 0
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.greatest:.{digits}f})"


class Verdict(NamedTuple):
    """Whether a ratio of medians meets its bar; `rounds` are the ratios of the single rounds."""

    what: str
    ratio: float
    rounds: list[float]
    bar: str
    passed: bool


def tables(cells: Sequence[Cell], missing: dict[str, str]) -> str:
    """Markdown: closed loops by size, open loops, and which server is missing and why."""
    lines = []
    for size in _distinct(cells, "size"):
        lines += [f"### {size} JPEG, closed loop: medians (range over the rounds)", ""]
        lines += _row(
            "", "requests/s, 1 client", "p50 ms", "p95 ms", "requests/s, 8 clients", "p50 ms", "p95 ms", "p99 ms"
        )
        lines += ["|---" * 8 + "|"]
        for server in _distinct(cells, "server"):
            if values(cells, At(server, size, LOOP), "throughput"):
                lines += _row(server, spread(cells, At(server, size, LOOP), "throughput"), *[""] * 6)
                continue
            alone, eight = (At(server, size, load) for load in CLIENTS)
            lines += _row(
                server,
                *(spread(cells, alone, key) for key in ("throughput", "p50", "p95")),
                *(spread(cells, eight, key) for key in ("throughput", "p50", "p95", "p99")),
            )
        lines += [""]
    for size in dict.fromkeys(cell["size"] for cell in cells if cell["load"] in SHARES):
        lines += [
            f"### {size} JPEG, Poisson arrivals at shares of each server's own capacity, deadline {DEADLINE:g} s",
            "",
        ]
        lines += _row(
            "", "load", "offered/s", "goodput/s", "refused %", "late %", "p50 ms of accepted", "p95 ms", "p99 ms"
        )
        lines += ["|---" * 9 + "|"]
        for server in _distinct(cells, "server"):
            for load in SHARES:
                at = At(server, size, load)
                if values(cells, at, "goodput"):
                    shares = (f"{100 * _share(cells, at, statuses):.0f}" for statuses in (REFUSED, LATE))
                    numbers = (spread(cells, at, key) for key in ("offered", "goodput"))
                    latencies = (spread(cells, at, key) for key in ("p50", "p95", "p99"))
                    lines += _row(server, load, *numbers, *shares, *latencies)
    lines += [f"\n{name} was not measured: {why}" for name, why in missing.items()]
    return "\n".join(lines)


def verdicts(
    cells: Sequence[Cell], ours: Mapping[str, str], peers: Mapping[str, Sequence[str]], bare: str
) -> list[Verdict]:
    """The bars that our servers must meet: against the peers with the same file, and FP32 against the bare loop.

    Args:
        ours, peers: the names of each precision.
    """
    found = set(_distinct(cells, "server"))
    result = []
    eight = CLIENTS[1]
    for size in _distinct(cells, "size"):
        for precision, mine in ours.items():
            others = [name for name in peers[precision] if name in found]
            if others and mine in found:
                for load, bar in zip(CLIENTS, (1.0, BARS[precision]), strict=True):
                    best = max(others, key=partial(_median, cells, size, load, "throughput"))
                    result += [compare(cells, "throughput", At(mine, size, load), At(best, size, load), bar)]
                best = min(others, key=partial(_median, cells, size, eight, "p95"))
                result += [compare(cells, "p95", At(mine, size, eight), At(best, size, eight), 1.0, at_most=True)]
        if {ours["fp32"], bare} <= found:
            result += [compare(cells, "throughput", At(ours["fp32"], size, eight), At(bare, size, LOOP), 0.95)]
    for name in ours.values():
        for size in dict.fromkeys(c["size"] for c in cells if (c["server"], c["load"]) == (name, OVERLOAD)):
            calm = [At(name, size, load) for load in (CLIENTS[1], *SHARES) if load != OVERLOAD]
            calm = [at for at in calm if values(cells, at, "goodput")]
            peak = max(calm, key=lambda at: spread(cells, at, "goodput").median)
            over = At(name, size, OVERLOAD)
            result += [compare(cells, "goodput", over, peak, 0.9)]
            waits = [value / (1000 * DEADLINE) for value in values(cells, over, "p99")]
            ratio = statistics.median(waits)
            result += [Verdict(f"{name}, {OVERLOAD}: p99 of accepted ÷ the deadline", ratio, waits, "≤ 1", ratio <= 1)]
    return result


def as_markdown(results: Iterable[Verdict]) -> str:
    """A table of verdicts."""
    lines = [*_row("what", "ratio", "single rounds", "bar", ""), "|---" * 5 + "|"]
    for each in results:
        rounds = f"{min(each.rounds):.2f}–{max(each.rounds):.2f}" if each.rounds else ""
        lines += _row(each.what, f"{each.ratio:.2f}", rounds, each.bar, "pass" if each.passed else "FAIL")
    return "\n".join(lines)


def as_json(results: Iterable[Verdict]) -> list[dict[str, Any]]:
    """The same for JSON; infinity, which JSON lacks, becomes null."""
    return [
        {
            **each._asdict(),
            "ratio": each.ratio if math.isfinite(each.ratio) else None,
            "rounds": [ratio if math.isfinite(ratio) else None for ratio in each.rounds],
        }
        for each in results
    ]


def spread(cells: Iterable[Cell], at: At, key: str) -> Spread:
    """Median and range of one number over the rounds; NaN where nothing was measured."""
    found = values(cells, at, key)
    return Spread(statistics.median(found), min(found), max(found)) if found else Spread(*[float("nan")] * 3)


def compare(cells: Sequence[Cell], key: str, at: At, other: At, bar: float, *, at_most: bool = False) -> Verdict:
    """The ratio of two medians, against a bar that it must reach, or must not exceed."""
    ratio = spread(cells, at, key).median / spread(cells, other, key).median
    rounds = [ours / theirs for ours, theirs in zip(values(cells, at, key), values(cells, other, key), strict=False)]
    what = f"{at.server}, {at.size}, {at.load}: {key} ÷ {other.server}, {other.load}"
    return Verdict(what, ratio, rounds, f"{'≤' if at_most else '≥'} {bar:g}", ratio <= bar if at_most else ratio >= bar)


def values(cells: Iterable[Cell], at: At, key: str) -> list[float]:
    """One number's value in each round; a latency that could not be measured, since too many were late, is infinite."""
    found = [cell[key] for cell in cells if (cell["server"], cell["size"], cell["load"]) == at]
    return [float("inf") if value is None else value for value in found]


def _median(cells: Sequence[Cell], size: str, load: str, key: str, server: str) -> float:
    return spread(cells, At(server, size, load), key).median


def _share(cells: Iterable[Cell], at: At, statuses: Sequence[str]) -> float:
    found = [cell for cell in cells if (cell["server"], cell["size"], cell["load"]) == at]
    return sum(cell["statuses"].get(status, 0) for cell in found for status in statuses) / sum(c["n"] for c in found)


def _distinct(cells: Iterable[Cell], key: str) -> list[str]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def _row(*values: object) -> list[str]:
    return [f"| {' | '.join(map(str, values))} |"]
