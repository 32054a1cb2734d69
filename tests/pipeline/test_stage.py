"""What every stage does where its place fails it: one message, and nothing half-written."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from pipeline import params, stage
from pipeline.data import prepared
from pipeline.model_file import onnx_model
from pipeline.network import stored
from pipeline.stage import Problem
from tests import tiny_model
from tests.project import ROOT


def message(main: Callable[[], None]) -> str:
    with pytest.raises(SystemExit) as caught:
        stage.guard(main)
    return str(caught.value.code)


@pytest.mark.parametrize("argument", ["http://me:pw@host:8000", "--server=https://me:pw@host/x"])
def test_a_password_in_an_argument_is_refused_unrepeated(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deploy", "https://host/a:b@c", argument])
    told = message(lambda: pytest.fail("it ran"))
    assert "an argument holds a password" in told
    assert "pw" not in told


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EIO])
def test_a_place_that_cannot_be_written_is_one_message(number: int) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "reports/metrics.json")

    what_now = "Make that a place that can be written, then run this again."
    assert message(main).strip() == f"error: {os.strerror(number)} (reports/metrics.json). {what_now}"


def test_a_file_in_a_folders_place_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("in the way")
    assert "File exists" in message(lambda: stage.write_json(tmp_path / "reports/metrics.json", {}))
    assert [path.name for path in tmp_path.iterdir()] == ["reports"]


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "a template of ours")

    with pytest.raises(FileNotFoundError):
        stage.guard(main)


def test_a_disk_that_fills_up_while_an_array_is_written_is_known_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "writing", lambda path: nullcontext(Path("/dev/full")))
    batches = iter([{"inputs": np.zeros((4, 100_000), np.float16)}])
    assert "the disk is full" in message(lambda: stored.write(tmp_path, "view-00.npy", 4, batches))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stage_that_is_ended_ends_what_it_started_and_leaves_nothing_half_written(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As a fold, which runs the stages of its training; a training that went on would be at the next one's files."""
    script = """
import subprocess, sys
from pathlib import Path
from pipeline import stage

def main():
    with stage.writing(Path("made")) as path:
        path.write_text("half")
        subprocess.run([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"])

stage.guard(main)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"here\n"
        process.send_signal(number)
        assert process.stdout.read() == b""  # nobody has it open any more: the child too has ended
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_two_processes_are_never_at_one_work(tmp_path: Path) -> None:
    work = tmp_path / "work"
    code = "import sys; from pathlib import Path; from pipeline import stage; "
    code += "stage.guard(stage.alone(Path(sys.argv[1]))(lambda: print('done')))"

    def another() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, work], cwd=ROOT, capture_output=True, text=True)

    with stage.alone(work):
        other = another()
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.strip() == f"error: another process is at work in {work}; run this again once it has ended"
    assert another().stdout == "done\n"
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("seed: 1 # früh".encode("cp1252"), "is not valid YAML: unacceptable character #x00fc"),
        (b"seed: [" * 3000, "is not valid YAML"),
        (b"seed: 2026-13-45", "is not valid YAML: month must be in 1..12"),
        (b"seed: " + b"1" * 5000, "is not valid YAML: Exceeds the limit"),
        (b"", "cannot be used"),
        (b"\x00\x01\x02", "is not valid YAML"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_message(tmp_path: Path, content: bytes, wrong: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(Problem, match=r"params\.yaml") as caught:
        params.load(tmp_path / "params.yaml")
    assert wrong in str(caught.value).replace("\n", " ")
    with pytest.raises(Problem, match="cannot be read"):
        params.load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_may_be_of_an_editor_that_marks_its_encoding(tmp_path: Path, encoding: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_bytes(text.encode(encoding))
    assert params.load(tmp_path / "params.yaml") == params.load(ROOT / "params.yaml")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b"\xff\xfe\x00"])
def test_a_file_of_another_stage_that_is_damaged_names_that_stage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "source.json").write_bytes(content)
    with pytest.raises(Problem, match=r"source\.json is damaged .*; `dvc repro --force fetch` makes it anew"):
        stage.read_json(tmp_path / "source.json", "fetch")


@pytest.mark.slow
def test_what_a_damaged_dvc_cache_puts_in_a_files_place_is_refused_with_what_to_do(tmp_path: Path) -> None:
    def dvc(command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}
    (tmp_path / "write.py").write_text(
        "import numpy, pathlib\nfrom pipeline import stage\n"
        "pathlib.Path('prepared').mkdir()\nfile = pathlib.Path('prepared/images.npy')\n"
        "numpy.save(file, numpy.zeros((2, 8, 8, 3), numpy.uint8))\nstage.seal(file)\n"
    )
    command = f"{sys.executable} write.py"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{prepare: {{cmd: {command}, outs: [prepared]}}}}")
    dvc("init -q --no-scm")
    dvc("repro -q")
    images = tmp_path / "prepared/images.npy"
    assert stage.require(images, "prepare") == images

    [cached] = [path for path in (tmp_path / ".dvc/cache").rglob("*") if path.is_file() and path.stat().st_size > 200]
    cached.chmod(0o644)
    content = bytearray(cached.read_bytes())
    content[-100] ^= 1
    cached.write_bytes(content)
    cached.chmod(0o444)  # as DVC has it, which then trusts it
    shutil.rmtree(images.parent)
    dvc("checkout -q")
    assert np.load(images).any()  # wrong pixels
    with pytest.raises(Problem, match=r"images\.npy is not the file that was made.*`dvc repro --force prepare`"):
        stage.require(images, "prepare")

    shutil.rmtree(tmp_path / ".dvc/cache")
    dvc("repro -q --force prepare")
    shutil.rmtree(images.parent)
    dvc("checkout -q")
    assert not np.load(stage.require(images, "prepare")).any()


def test_whatever_reads_an_array_or_a_model_refuses_another_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model.write(onnx_model.FP32)
    prepared.PREPARED.mkdir(parents=True)
    (prepared.PREPARED / "split.csv").write_text(",".join(prepared.COLUMNS) + "\n")
    images = prepared.PREPARED / "images.npy"
    np.save(images, np.zeros((2, 8, 8, 3), np.uint8))
    stage.seal(onnx_model.FP32, images)
    onnx_model.load(onnx_model.FP32)
    prepared.read()
    tiny_model.write(onnx_model.FP32, bias=9.0)
    np.save(images, np.ones((2, 8, 8, 3), np.uint8))
    for read in (lambda: onnx_model.load(onnx_model.FP32), prepared.read):
        with pytest.raises(Problem, match="is not the file that was made"):
            read()
