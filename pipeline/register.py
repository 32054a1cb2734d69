"""Registers the model that was evaluated, and lets it serve if it passes the gate.

Reads:  models/*.onnx, reports/ (metrics, figures, plots, history, validation, predictions, model card),
        data/source.json, data/prepared/ and data/raw/ (the champion answers for the same test images), the registry
Writes: the registry, reports/registration.json, reports/promotions.jsonl (one line appended a promotion)
Run:    python -m pipeline.register   (exit 1 if the gate refuses)
"""

import json
import math
import os
from dataclasses import asdict
from datetime import UTC, datetime

from pipeline import params, stage
from pipeline.data.source import read_source
from pipeline.evaluation import report
from pipeline.evaluation.report import Report
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import FP32, INT8, OnnxModel
from pipeline.registry import champion, gate, tracking, versions
from pipeline.registry.versions import REPORTS
from pipeline.stage import Problem

REGISTRATION = REPORTS / "registration.json"
PROMOTIONS = REPORTS / "promotions.jsonl"


def main() -> None:
    recipe = params.load()
    tracking.check()
    model, measured, source = onnx_model.load(FP32), report.read(), read_source()
    onnx_model.load(INT8)  # a broken one must be found before it is registered
    PROMOTIONS.touch()  # an output of this stage even while nothing was ever promoted

    name = recipe.register_.name
    with tracking.reachable():
        client = tracking.client()
        run_id, version = versions.register(client, recipe, model, measured, source)
        present = versions.aliases(client, name).get("champion")
        if version != present:
            versions.move(client, name, "challenger", version)
        checks, note = [], "The gate is off: nothing was checked."
        if recipe.gate.mode != "off":
            regression, note = champion.compare(recipe, model, version, present)
            checks = gate.verdict(measured, recipe.gate, regression, [c.key for c in recipe.classes])
        passed = all(check.passed for check in checks)
        outcome = recipe.gate.mode if recipe.gate.mode != "enforce" else "passed" if passed else "failed"
        promoted = version != present and outcome in ("off", "passed")
        if promoted:
            if present:
                versions.move(client, name, "previous", present)
            versions.move(client, name, "champion", version)
            versions.move(client, name, "challenger", None)
            _append_promotion(name, version, present, run_id, model, measured)
        versions.finish(client, name, run_id, version, outcome)

    registration = {
        "name": name,
        "version": version,
        "run_id": run_id,
        "alias": "champion" if promoted or version == present else "challenger",
        "gate": outcome,
        "note": note,
        "checks": [asdict(check) | {"value": None if math.isnan(check.value) else check.value} for check in checks],
    }
    stage.write_json(REGISTRATION, registration)
    print(f"{name} version {version}, run {run_id}, in {tracking.shown_uri()}")
    if checks:
        print(gate.table(checks))
    print(note)
    if promoted:
        print(f"Version {version} is champion now." + (f" Version {present} is 'previous'." if present else ""))
        return
    if version == present:
        stays = f"Version {version} was champion before and stays it."
    else:
        stays = f"Version {version} is 'challenger'; " + (
            f"version {present} stays champion." if present else "there is no champion."
        )
    if outcome == "failed":
        short = ", ".join(check.name for check in checks if not check.passed)
        raise Problem(f"params.gate refuses version {version}. It falls short in: {short}. {stays}")
    dry_run = f"Dry run: the gate would {'pass' if passed else 'refuse'} it. " if outcome == "dry-run" else ""
    print(dry_run + stays)


def _append_promotion(
    name: str, version: str, former: str | None, run_id: str, model: OnnxModel, measured: Report
) -> None:
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": name,
        "version": version,
        "from_version": former,
        "run_id": run_id,
        "sha256": stage.sha256(model.path),
        "git_commit": model.contract.provenance.git_commit,
        "balanced_accuracy": measured.fp32.balanced_accuracy.value,
    }
    with PROMOTIONS.open("a") as file:  # appending one short line is atomic: two processes never mix theirs
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    stage.run(main)
