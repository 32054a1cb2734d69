"""The demo's trained network at the paper's 224 px: the same weights, so that a benchmark times a model of full size.

`prepare`, `calibrate` and `export` run unchanged in a folder of their own, on the demo's images enlarged to 224 px.
So the two files keep the whole contract, and any server of this project loads them. Their answers mean nothing: the
weights were trained at 64 px. A model that was trained at 224 px serves every benchmark as well.

Reads:  params.yaml, data/raw/, data/manifest.csv, data/source.json, models/model.keras
Writes: FOLDER/leukdetect.onnx, FOLDER/leukdetect.int8.onnx
Run:    python -m benchmarks.model224 --out FOLDER
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
    """Runs the three stages in an empty folder, and leaves the model files in its models/.

    Raises:
        Problem: the demo has not been made yet, or a stage failed (it has said why).
    """
    os.chdir(ROOT)
    recipe = yaml.safe_load(params.PARAMS_FILE.read_text())
    recipe["prepare"]["image_size"], recipe["estimate"]["folds"] = SIZE, []  # no folds were trained at this size
    (folder / params.PARAMS_FILE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    (folder / "data").mkdir()
    for name in DATA:
        if not Path(name).exists():
            raise Problem(f"{name} is missing; `make demo ONCE=1` makes it")
        (folder / name).symlink_to(Path(name).resolve())

    small = trained.load_model()
    enlarged = classifier.build(SIZE, len(recipe["classes"]), **recipe["model"])
    classifier.copy_weights(small, enlarged)
    (folder / "models").mkdir()
    enlarged.save(folder / "models/model.keras")

    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    for name in ("prepare", "calibrate", "export"):
        if subprocess.run([sys.executable, "-m", f"pipeline.{name}"], cwd=folder, env=environment).returncode:
            raise Problem(f"pipeline.{name} failed at {SIZE} px; what it printed says why")


if __name__ == "__main__":
    stage.guard(main)
