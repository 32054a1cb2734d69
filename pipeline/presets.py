"""Makes a recipe of one of presets/: a folder recipes/NAME with its own params.yaml, gate.yaml, dvc.lock and outputs.

Run:    python -m pipeline.presets all4 [NAME]      (NAME is the preset's unless given)

The project's own folder stays the demo's. A recipe that is there keeps its params.yaml and gate.yaml; its dvc.yaml is
made of the project's each time.
"""

import re
import sys
from pathlib import Path

from pipeline import params, stage
from pipeline.evaluation import learning_curve
from pipeline.params import PARAMS_FILE
from pipeline.registry import bounds
from pipeline.registry.bounds import GATE_FILE
from pipeline.registry.run_tags import RECIPES
from pipeline.stage import Problem

ROOT = Path(__file__).parents[1]
UP = "../.."  # from a recipe's folder to the project's
HEAD = "# Made by `python -m pipeline.presets` of the project's dvc.yaml, whose stages these are: change that one.\n"
NO_FOLDS = {"key": "", "folds": 0, "by_share": {}}  # until pipeline.cross_validate is run with the recipe


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in known:
        raise Problem(f"name one of the presets, and perhaps the recipe to make of it: {', '.join(known)}")
    made = make(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None)
    print(f"{made} is ready: cd {made} && dvc repro")


def make(preset: str, name: str | None = None, root: Path = ROOT) -> Path:
    """Makes `recipes/<name>`, or brings its dvc.yaml up to date; returns its path below the project's folder.

    Raises Problem: the name is no folder's, or the preset cannot be used.
    """
    name = name or preset
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise Problem(f"{name!r} is no name for a recipe: use a to z, 0 to 9, - and _")
    own, gate = root / "presets" / f"{preset}.yaml", root / "presets/gates" / f"{preset}.yaml"
    if not gate.is_file():
        raise Problem(f"{own} has no bounds: write {gate}, as the files beside it are")
    params.load(own)
    bounds.read(gate.read_text(), str(gate))
    folder = root / RECIPES / name
    for file, text in {PARAMS_FILE: own.read_text(), GATE_FILE: gate.read_text()}.items():
        if not (folder / file).exists():
            with stage.writing(folder / file) as path:
                path.write_text(text)
    if not (folder / learning_curve.JSON).exists():
        stage.write_json(folder / learning_curve.JSON, NO_FOLDS)
    with stage.writing(folder / "dvc.yaml") as path:
        path.write_text(HEAD + stages((root / "dvc.yaml").read_text()))
    return RECIPES / name


def stages(project: str) -> str:
    """The project's dvc.yaml for a recipe's folder: the same stages, with the code two folders up."""
    text = project.replace("cmd: python -m", f"cmd: PYTHONPATH={UP} python -m")
    return re.sub(r"^( +- )((?:leukdetect|pipeline)/)", rf"\1{UP}/\2", text, flags=re.MULTILINE)


if __name__ == "__main__":
    stage.guard(main)
