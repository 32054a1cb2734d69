"""A copy of the project, with a recipe so small that `dvc repro` takes a minute."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TINY: dict[str, dict[str, Any]] = {
    "demo": {"patients": 10, "images_per_patient": 4, "size": 40},
    "validate": {"min_images_per_class": 10},
    "prepare": {"image_size": 32},
    "model": {"backbone": "VGG16"},  # few layers: quick to begin with, in each stage
    "features": {"views": 2},
    "train_head": {"epochs": 2},
    "fine_tune": {"epochs": 1},
    "export": {"int8_images": 8, "golden_images": 4},
    "evaluate": {"bootstrap": 100},
}
# Two epochs teach nothing; here the path is under test, not the accuracy.
NO_BOUNDS = {
    "min_balanced_accuracy": 0.0, "min_class_recall": 0.0, "min_malignant_sensitivity": 0.0,
    "max_ece": 1.0, "max_referred": 1.0, "min_unlikeness_auroc": 0.0,
}  # fmt: skip
LAX: dict[str, Any] = {
    "mode": "enforce", "reason": None, "fp32": NO_BOUNDS, "int8": NO_BOUNDS, "min_margin_over_colour": -1.0,
    "max_cells_masked": 1.0, "max_corner_drop": 1.0, "max_int8_drop": 1.0, "max_regression": 1.0,
}  # fmt: skip


class Project:
    """A copy of the project in a folder of its own, with its own git, DVC cache and MLflow."""

    def __init__(
        self,
        root: Path,
        preset: str,
        changes: dict[str, dict[str, Any]],
        seed: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.root = root
        self.environment = environment or {}  # of its commands, beside what every command needs
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and name not in ("dvc.lock", "reports/headline.json"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        recipe = yaml.safe_load((root / f"presets/{preset}.yaml").read_text())
        for section, values in changes.items():
            recipe[section] |= values
        recipe["seed"] = seed  # one that gives every class a patient in every split
        self.write(recipe)
        (root / "gate.yaml").write_text(yaml.safe_dump(LAX))
        subprocess.run(["git", "init", "-q", "-b", "main"], cwd=root, check=True)
        self.commit("start")

    def commit(self, message: str) -> None:
        for command in ("add -A", f"-c user.name=test -c user.email=test@localhost commit -qm {message}"):
            subprocess.run(["git", *command.split()], cwd=self.root, check=True)

    def write(self, recipe: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))

    def read(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def command(self, *command: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """A command, and the environment that it needs."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "LEUKDETECT_", "GIT_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        who = {f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment |= {"PATH": path, "DVC_NO_ANALYTICS": "1", **who, **self.environment}
        return command, environment

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        _, environment = self.command(*command)
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=900)

    def dvc(self, *arguments: str) -> str:
        result = self.run("dvc", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout
