"""The side-by-side benchmark: who is compared with whom, and where the bars are."""

import sys
from pathlib import Path

import pytest

from benchmarks import engines, report
from benchmarks.report import CLIENTS, Cell
from benchmarks.servers import PEERS, SERVERS
from leukdetect.contract import FILES
from pipeline.stage import Problem

OURS = {"fp32": "ours FP32", "int8": "ours INT8"}
THEIRS = {"fp32": ["slow FP32", "fast FP32"], "int8": ["slow INT8", "fast INT8"]}


def test_every_peer_serves_both_files_from_an_environment_that_is_pinned() -> None:
    peers = [server for server in SERVERS if server.environment]
    for precision in FILES:
        mine = [server.name for server in peers if server.precision == precision]
        assert len(set(mine)) == len({server.command for server in peers}) + 1  # the naive app has two engines
        assert all(name.endswith(precision.upper()) for name in mine)
    for server in peers:
        lines = (PEERS / f"{server.environment}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))


def cells(ours: dict[str, float]) -> list[Cell]:
    """With 8 clients the fast peers answer 20/s in FP32 and 40/s in INT8, the slow ones half of that."""
    rates = {"fast FP32": 20.0, "slow FP32": 10.0, "fast INT8": 40.0, "slow INT8": 20.0, **ours}
    return [
        {"server": name, "size": "S", "load": load, "round": 1, "throughput": rate, "p95": 8000 / rate}
        for name, rate in rates.items()
        for load in CLIENTS
    ]


@pytest.mark.parametrize(("int8", "passed"), [(49.0, False), (51.0, True)])
def test_ours_is_held_against_the_best_peer_with_the_same_file(int8: float, passed: bool) -> None:
    found = report.verdicts(cells({"ours FP32": 20.5, "ours INT8": int8}), OURS, THEIRS, "bare loop")
    eight = {each.what: each for each in found if "8 clients: throughput" in each.what}
    assert list(eight) == [f"ours {key}, S, 8 clients: throughput ÷ fast {key}, 8 clients" for key in ("FP32", "INT8")]
    fp32, mine = eight.values()
    assert (fp32.bar, fp32.passed) == ("≥ 1", True)
    assert (mine.bar, mine.passed, round(mine.ratio, 3)) == ("≥ 1.25", passed, int8 / 40)
    assert all(each.passed for each in found if ": p95 ÷ " in each.what)


def test_without_the_other_engine_the_comparison_says_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(sys, "argv", ["engines", "--out", str(tmp_path / "engines.json")])
    with pytest.raises(Problem, match=r"openvino is not installed here.*benchmarks\.serving --setup"):
        engines.main()
    assert not list(tmp_path.iterdir())
