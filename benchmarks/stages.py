"""Time, import time and peak memory of each stage of `dvc repro` on the demo: today's code beside a commit's.

The two trees take turns, stage by stage, so that other load on the machine affects both; each stage is a process in its
tree's own folder. Processor time stands beside wall-clock time, since other load adds less to it. Import time is
that of the stage's module, timed in a process of its own; later imports count as the stage's work. Both phases
train for one epoch; `benchmarks.training` times epochs.

Run:    python -m benchmarks.stages [--before COMMIT]     (about 8 minutes on an idle machine)
Writes: benchmarks/results/stages.json
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks import checkout
from benchmarks.checkout import ROOT
from pipeline import stage
from pipeline.stage import Problem

RESULTS = ROOT / "benchmarks/results/stages.json"
FIRST = "6a94e1d"  # the first commit with a whole run in docs/results.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=FIRST, metavar="COMMIT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = checkout.at(options.before, Path(folder) / "code")
        trees = {"before": before, "now": ROOT}
        works = {name: Path(folder) / name for name in trees}
        for name, tree in trees.items():
            recipe = yaml.safe_load((tree / "presets/demo.yaml").read_text())
            recipe.get("gate", {})["mode"] = "dry-run"  # where a commit has the gate in its recipe
            recipe["train_head"]["epochs"] = recipe["fine_tune"]["epochs"] = 1
            works[name].mkdir()
            if (gate := tree / "presets/gates/demo.yaml").is_file():
                (works[name] / "gate.yaml").write_text(gate.read_text().replace("mode: enforce", "mode: dry-run"))
            (works[name] / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        found: dict[str, Any] = {"commit": options.before, "stages": {}}
        for each in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
            found["stages"][each] = {
                name: {
                    "imports": run(tree, works[name], "-c", f"import pipeline.{each}"),
                    "whole": run(tree, works[name], "-m", f"pipeline.{each}"),
                }
                for name, tree in trees.items()
            }
            print(f"{each}: {found['stages'][each]['now']['whole']['seconds']:.0f} s", file=sys.stderr, flush=True)
        stage.write_json(RESULTS, found)
    print(table(found))


def run(tree: Path, work: Path, *arguments: str) -> dict[str, float]:
    """A Python process in the work folder with the tree's code: seconds, processor seconds and peak GiB.

    Raises:
        Problem: it failed; with the end of what it printed.
    """
    own = {"PYTHONPATH": str(tree), "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile("w+") as out:
        started = time.monotonic()
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, cwd=work, env=os.environ | own, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if process.returncode:
            raise Problem(f"{' '.join(arguments)} failed in {tree}:\n{out.read()[-2000:]}")
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "processor": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss * scale / 2**30,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown; wall-clock seconds, in brackets processor seconds."""
    titles = ("stage", f"at {found['commit']}, s (processor)", "now", "imports of it", "peak GiB, then and now")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    sums = {name: [0.0, 0.0] for name in ("before", "now")}
    for name, cells in found["stages"].items():
        before, now, imports = cells["before"]["whole"], cells["now"]["whole"], cells["now"]["imports"]
        for total, cell in zip(sums.values(), (before, now), strict=True):
            total[0] += cell["seconds"]
            total[1] += cell["processor"]
        lines.append(
            f"| {name} | {_pair(before)} | {_pair(now)} | {_pair(imports)} | "
            f"{before['peak_gib']:.1f}, {now['peak_gib']:.1f} |"
        )
    whole = (f"{seconds:.0f} ({processor:.0f})" for seconds, processor in sums.values())
    return "\n".join([*lines, f"| all | {' | '.join(whole)} | | |"])


def _pair(cell: dict[str, float]) -> str:
    return f"{cell['seconds']:.1f} ({cell['processor']:.1f})"


if __name__ == "__main__":
    stage.guard(main)
