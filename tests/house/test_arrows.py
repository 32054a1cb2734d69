"""One arrow between packages: `pipeline` may import `serving`, never the other way."""

import subprocess
import sys

from tests.project import ROOT

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tensorflow", "keras", "pandas", "pipeline"}:
            raise SystemExit(f"serving imports {name}")

sys.meta_path.insert(0, Guard())
import serving
names = [module.name for module in pkgutil.walk_packages(serving.__path__, "serving.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def _python(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_serving_imports_no_tensorflow_no_pandas_and_nothing_of_the_pipeline() -> None:
    assert int(_python(IMPORT_EVERYTHING)) == len(list((ROOT / "serving").rglob("*.py"))) - 1  # all but __init__


def test_mlflow_is_the_library_and_not_the_folder_of_that_name() -> None:
    assert not list((ROOT / "mlflow").glob("**/*.py"))
    assert "site-packages" in _python("import mlflow; print(mlflow.__file__)")
