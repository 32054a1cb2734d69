"""Makes one of presets/ the active recipe, params.yaml.

Run:    python -m pipeline.presets all4
"""

import sys
from pathlib import Path

from pipeline import params, stage
from pipeline.params import PARAMS_FILE
from pipeline.stage import Problem

PRESETS = Path("presets")


def main() -> None:
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        raise Problem(f"name one of the presets: {', '.join(known)}")
    activate(PRESETS / f"{sys.argv[1]}.yaml")
    print(f"{PARAMS_FILE} is now {PRESETS / sys.argv[1]}.yaml")


def activate(preset: Path) -> None:
    """Copies a preset over params.yaml, unless params.yaml holds edits that no preset has: nothing is lost."""
    params.load(preset)
    if PARAMS_FILE.exists() and PARAMS_FILE.read_text() not in {path.read_text() for path in PRESETS.glob("*.yaml")}:
        raise Problem(
            f"{PARAMS_FILE} has edits that are in none of {PRESETS}/. Save them as a preset "
            f"(cp {PARAMS_FILE} {PRESETS}/mine.yaml) or drop them (git checkout {PARAMS_FILE}), then run it again."
        )
    with stage.writing(PARAMS_FILE) as path:
        path.write_text(preset.read_text())


if __name__ == "__main__":
    stage.guard(main)
