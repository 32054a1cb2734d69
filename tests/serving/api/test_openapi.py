"""Everything that the OpenAPI document allows, and much that it does not, asked of the real server by schemathesis."""

import re
import subprocess
import sys
from pathlib import Path

from tests import tiny_model
from tests.server import ROOT, running


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    make_key = [sys.executable, "-m", "serving.keys", "tester", "--role", "admin", "--append", str(tmp_path / "keys")]
    key = subprocess.run(make_key, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[0]
    command: list[str | Path] = [
        Path(sys.executable).with_name("schemathesis"),
        "--config-file",
        Path(__file__).with_name("schemathesis.toml"),
    ]
    with running(tmp_path, "--model", str(tmp_path / "m.onnx"), "--keys-file", str(tmp_path / "keys")) as server:
        run = subprocess.run(
            [*command, "run", f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {key}",
             "--max-examples", "25", "--seed", "1", "--generation-database", "none", "--no-color"],
            cwd=tmp_path, capture_output=True, text=True, timeout=250,
        )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    operations, passed = re.search(r"Tested: (\d+)", run.stdout), re.search(r"(\d+) passed,", run.stdout)
    assert operations, run.stdout
    assert passed, run.stdout
    assert int(operations[1]) >= 20
    assert int(passed[1]) > 500
