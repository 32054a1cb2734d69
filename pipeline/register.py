"""Registers the model that was evaluated, and lets it serve if it passes the gate.

The main branch's gate.yaml judges. Only the main branch's newest commit, with nothing changed since, moves `champion`;
from a branch, a changed tree and an experiment this is a dry run. What the registry has already is not logged again.

Reads:  models/*.onnx, reports/ (metrics, figures, plots, history, validation, predictions, model card), gate.yaml, git,
        data/source.json, data/prepared/ and data/raw/ (the champion answers for the same images), the registry
Writes: the registry, reports/registration.json, reports/promotions.jsonl (a copy of the registry's log)
Run:    python -m pipeline.register [--dry-run] [--base REVISION]   (exit 1: the gate refuses, outside an experiment)
"""

import argparse
import math
import os
from dataclasses import asdict

from pipeline import params, stage
from pipeline.data.source import read_source
from pipeline.evaluation import report
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8
from pipeline.registry import bounds, champion, gate, promotions, tracking, versions
from pipeline.registry.versions import REPORTS
from pipeline.stage import Problem

REGISTRATION = REPORTS / "registration.json"


def main(base: str | None = None, dry_run: bool = False) -> None:
    recipe, judge = params.load(), bounds.judge(base)
    keeps, mode = judge.keeps or ("--dry-run was given" if dry_run else ""), judge.gate.mode
    tracking.check()
    model, measured, source = onnx_model.load(FP32), report.read(), read_source()
    onnx_model.load(INT8)  # a broken one must be found before it is registered

    name = recipe.register_.name
    with tracking.reachable():
        client = tracking.client()
        present, other = champion.load(client, name, model)
        run_id, version = versions.register(client, recipe, model, measured, source, dry_run=bool(keeps))
        checks, note = [], f"The gate is off: nothing was checked. The reason given: {judge.gate.reason}"
        if mode != "off":
            regression, note = champion.compare(client, recipe, model, version, present, other)
            checks = gate.verdict(
                measured, judge.gate, regression, [c.key for c in recipe.classes], recipe.tells_malignancy
            )
        passed = all(check.passed for check in checks)
        outcome = "dry-run" if keeps else mode if mode != "enforce" else "passed" if passed else "failed"
        if version != present and outcome != "dry-run":
            versions.move(client, name, "challenger", version)
        promoted = version != present and outcome in ("off", "passed")
        if promoted:
            versions.promote(client, name, version, present)
            promotions.append(
                client, name, "champion", version, present, gate=outcome, why=judge.gate.reason, run_id=run_id,
                sha256=stage.sha256(FP32), git_commit=model.contract.provenance.git_commit,
                balanced_accuracy=measured.fp32.balanced_accuracy.value,
            )  # fmt: skip
        versions.finish(client, name, run_id, version, outcome, judge.gate.reason)
        promotions.copy(client, name)

    registration = {
        "name": name,
        "version": version,
        "run_id": run_id,
        "alias": "champion" if promoted or version == present else "challenger" if outcome != "dry-run" else None,
        "gate": outcome,
        "passed": passed,
        "keeps": keeps,
        "changes": judge.changes,
        "note": note,
        "checks": [asdict(check) | {"value": None if math.isnan(check.value) else check.value} for check in checks],
    }
    stage.write_json(REGISTRATION, registration)
    print(f"{name} version {version}, run {run_id}, in {tracking.shown_uri()}")
    if judge.changes:
        print("This tree changes gate.yaml. It is judged by the former one:", *judge.changes, sep="\n  ")
    if checks:
        print(gate.table(checks))
    print(note)
    if promoted:
        print(f"Version {version} is champion now." + (f" Version {present} is 'previous'." if present else ""))
        return
    if version == present:
        stays = f"Version {version} was champion before and stays it."
    else:
        stays = f"Version {version} is {'kept, and no alias moves' if outcome == 'dry-run' else repr('challenger')}; "
        stays += f"version {present} stays champion." if present else "there is no champion."
    why = f", since {keeps}" if keeps else ""
    dry = f"Dry run{why}: the gate would {'pass' if passed else 'refuse'} it. " if outcome == "dry-run" else ""
    if mode == "enforce" and not passed and "DVC_EXP_NAME" not in os.environ:  # DVC drops an experiment that exits 1
        short = ", ".join(check.name for check in checks if not check.passed)
        raise Problem(f"{dry}gate.yaml refuses version {version}. It falls short in: {short}. {stays}")
    print(dry + stays)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="the revision whose gate.yaml judges; the main branch unless given")
    parser.add_argument("--dry-run", action="store_true", help="say what the gate would do, and move no champion")
    return parser.parse_args()


if __name__ == "__main__":
    stage.run(lambda: main(**vars(_options())))
