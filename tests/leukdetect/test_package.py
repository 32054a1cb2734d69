"""The library as a package: what `pip install .` gives, and that it needs nothing else of this repository."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import leukdetect
from tests import tiny_model
from tests.project import ROOT

NEEDED = {"numpy", "onnxruntime", "PIL", "pydantic", "simplejpeg"}

# Asks a model file; what is imported beside the library's needs and the standard library ends it.
ASK = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {others}:
            raise SystemExit(f"leukdetect imports {{name}}")

sys.meta_path.insert(0, Guard())
import dataclasses, json, leukdetect
answer = leukdetect.open({model!r}).predict({image!r})
print(json.dumps([leukdetect.__file__, answer.key, answer.decision, answer.probabilities]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "leukdetect", folder / "source/leukdetect", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=folder / "source", check=True)
    [made] = folder.glob("leukdetect-*.whl")
    return made


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Path, Path]:
    """A model file and an image."""
    tiny_model.write(tmp_path / "m.onnx")
    (tmp_path / "blue.jpg").write_bytes(tiny_model.jpeg((20, 20, 220)))
    return tmp_path / "m.onnx", tmp_path / "blue.jpg"


def ask(model: Path, image: Path, others: set[str]) -> str:
    return ASK.format(model=str(model), image=str(image), others=sorted(others))


def test_the_wheel_holds_the_library_alone_and_its_schema(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"leukdetect"}
    assert {"leukdetect/contract.schema.json", "leukdetect/py.typed"} <= set(names)


def test_an_installed_library_answers_with_nothing_of_the_repository_and_only_what_it_says_it_needs(
    wheel: Path, asked: tuple[Path, Path], tmp_path: Path
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    # Every distribution of this environment but the library's needs and theirs.
    also = {"annotated_types", "flatbuffers", "google", "packaging", "pydantic_core", "typing_extensions"}
    also |= {"typing_inspection", "dotenv", "numpy", "sympy", "mpmath"}
    here = {path.name.split(".")[0] for path in Path(leukdetect.__file__).parents[1].iterdir()}
    installed = {path.stem for folder in sys.path if "site-packages" in folder for path in Path(folder).iterdir()}
    others = (installed | here | {"serving", "pipeline"}) - NEEDED - also - {"leukdetect"}
    others = {name for name in others if name.isidentifier() and not name.startswith("_")} - sys.stdlib_module_names
    assert {"fastapi", "mlflow", "pandas", "tensorflow"} <= others
    run = subprocess.run(
        [sys.executable, "-c", ask(*asked, others)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    file, key, decision, probabilities = json.loads(run.stdout)
    assert Path(file).is_relative_to(tmp_path / "installed")
    here_too = leukdetect.open(asked[0]).predict(asked[1])
    assert (key, decision, probabilities) == (here_too.key, here_too.decision, here_too.probabilities)


def python(version: str) -> str | None:
    """An interpreter of this version on this machine."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_pip_installs_it_in_an_empty_environment(
    version: str, wheel: Path, asked: tuple[Path, Path], tmp_path: Path
) -> None:
    interpreter = python(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} on this machine")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "env"], check=True)
    own = tmp_path / "env/bin/python"
    subprocess.run([own, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel], check=True)
    program = ask(*asked, {"serving", "pipeline", "fastapi", "mlflow"})
    run = subprocess.run([own, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)[1] == "pre"
