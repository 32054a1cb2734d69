"""Makes one of presets/ the active recipe, params.yaml, and its bounds the gate's, gate.yaml.

Run:    python -m pipeline.presets all4
"""

import sys
from pathlib import Path

from pipeline import params, stage
from pipeline.params import PARAMS_FILE
from pipeline.registry import bounds
from pipeline.registry.bounds import GATE_FILE
from pipeline.stage import Problem

PRESETS = Path("presets")
GATES = PRESETS / "gates"


def main() -> None:
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        raise Problem(f"name one of the presets: {', '.join(known)}")
    activate(PRESETS / f"{sys.argv[1]}.yaml")
    print(f"{PARAMS_FILE} is now {PRESETS / sys.argv[1]}.yaml")


def activate(preset: Path) -> None:
    """Copies a preset over params.yaml and gate.yaml, unless these hold edits that no preset has: nothing is lost."""
    params.load(preset)
    gate = GATES / preset.name
    if not gate.is_file():
        raise Problem(f"{preset} has no bounds: write {gate}, as the files beside it are")
    bounds.read(gate.read_text(), str(gate))
    for active, folder in ((PARAMS_FILE, PRESETS), (GATE_FILE, GATES)):
        if active.exists() and active.read_text() not in {path.read_text() for path in folder.glob("*.yaml")}:
            raise Problem(
                f"{active} has edits that are in none of {folder}/. Save them as a preset "
                f"(cp {active} {folder}/mine.yaml) or drop them (git checkout {active}), then run it again."
            )
    for active, chosen in ((PARAMS_FILE, preset), (GATE_FILE, gate)):
        with stage.writing(active) as path:
            path.write_text(chosen.read_text())


if __name__ == "__main__":
    stage.guard(main)
