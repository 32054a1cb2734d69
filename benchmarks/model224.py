"""A whole network at the paper's 224 px, with weights from the demo, so that a benchmark times a model of full size.

The demo's recipe, but with all of the base, is trained at 64 px in a folder of its own; `prepare`, `calibrate` and
`export` then run there on the images enlarged to 224 px. So the two files keep the whole contract, and any server of
this project loads them. Their answers mean nothing. A model that was trained at 224 px serves every benchmark as well.

Reads:  params.yaml, data/raw/, data/manifest.csv, data/source.json
Writes: FOLDER/leukdetect.onnx, FOLDER/leukdetect.int8.onnx
Run:    python -m benchmarks.model224 --out FOLDER     (a few minutes more than the demo)
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from leukdetect.contract import FILES
from pipeline import params, stage
from pipeline.network import classifier, trained
from pipeline.stage import Problem

ROOT = Path(__file__).parents[1]
SIZE = 224
DATA = ("data/raw", "data/manifest.csv", "data/source.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder for the two model files")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        build(Path(folder))
        for name in FILES.values():
            (Path(folder) / "models" / name).replace(out / name)
    print(f"{out}: {', '.join(FILES.values())}")


def build(folder: Path) -> None:
    """Runs the stages in an empty folder, and leaves the model files in its models/.

    Raises:
        Problem: the demo has not been made yet, or a stage failed (it has said why).
    """
    recipe = yaml.safe_load((ROOT / params.PARAMS_FILE).read_text())
    recipe["model"]["last_layer"], recipe["estimate"]["folds"] = None, []
    (folder / "data").mkdir()
    for name in DATA:
        if not (ROOT / name).exists():
            raise Problem(f"{name} is missing; `make demo ONCE=1` makes it")
        (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)
    run(recipe, "prepare", "features", "train_head", "fine_tune")

    small = trained.load_model()
    recipe["prepare"]["image_size"] = SIZE
    enlarged = classifier.build(SIZE, len(recipe["classes"]), **recipe["model"])
    classifier.copy_weights(small, enlarged)
    enlarged.save(trained.MODEL)
    stage.seal(trained.MODEL)
    run(recipe, "prepare", "calibrate", "export")


def run(recipe: dict[str, Any], *stages: str) -> None:
    """Runs stages of a recipe in the current folder."""
    params.PARAMS_FILE.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{Path.cwd()}/mlflow.db"}
    for name in stages:
        if subprocess.run([sys.executable, "-m", f"pipeline.{name}"], env=environment).returncode:
            size = recipe["prepare"]["image_size"]
            raise Problem(f"pipeline.{name} failed at {size} px; what it printed says why")


if __name__ == "__main__":
    stage.guard(main)
