"""The drift report: of a folder of images, and of a running server."""

import html
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from leukdetect import drift
from monitoring import report
from tests import tiny_model
from tests.server import Server, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file, 110 images in every colour, 60 that are all alike, and a file that is no image."""
    folder = tmp_path_factory.mktemp("report")
    tiny_model.write(folder / "m.onnx")
    rng = np.random.default_rng(0)
    for name, count in (("varied", 110), ("alike", 60)):
        (folder / name).mkdir()
        for index in range(count):
            colour = rng.integers(0, 256, 3) if name == "varied" else np.array((200, 60, 60))
            noise = rng.normal(0, rng.uniform(0, 8), (32, 32, 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    (folder / "alike" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(folder, "--model", str(folder / "m.onnx"), "--feedback-db", str(folder / "feedback.db")) as server:
        yield server


def run(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitoring.report", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_folder_of_images_makes_a_page_that_stands_alone(folder: Path) -> None:
    out = folder / "alike.html"
    done = run("--images", folder / "alike", "--model", folder / "m.onnx", "--out", out)
    assert done.returncode == report.ALARM, done.stderr
    assert re.search(r"drift in .*brightness", done.stdout)
    page = html.unescape(out.read_text())
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\((?!#)""", page)  # within a plot, # is the plot itself
    assert "60 images of a folder, in a random order, since the files' times tell none, against 200" in page
    assert "1 files could not be read" in page
    assert "no clinical meaning" in page
    assert "Not a medical device" in page
    for meaning in drift.MEANING.values():
        assert meaning in html.unescape(page)
    assert page.count("<svg") == len(drift.SCALARS) + 2  # and the classes, and the course of two windows


def test_several_windows_are_drawn_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report.of_folder(folder / "varied", folder / "m.onnx")
    assert list(found.windows) == ["1–50", "51–100", "61–110"]
    assert "Window by window" in report.page(found)


def test_windows_are_not_of_one_class_though_the_names_are_sorted_by_class(folder: Path, tmp_path: Path) -> None:
    """As many of each class: sorted by name, each window would hold one class alone."""
    rng = np.random.default_rng(1)
    for name, colour in {"a": (200, 60, 60), "b": (60, 200, 60), "c": (60, 60, 200)}.items():
        for index in range(60):
            noise = rng.normal(0, 4, (32, 32, 3))
            path = tmp_path / name / f"{index:03d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(path)
    found = report.of_folder(tmp_path, folder / "m.onnx")
    assert list(found.windows) == ["1–50", "51–100", "101–150", "131–180"]
    assert not any(window.alarm("class") for window in found.windows.values())


def test_files_of_other_days_keep_their_order_and_patients_their_images_together(tmp_path: Path) -> None:
    names = ["b/p1-2", "a/p2-1", "a/p1-1", "b/p2-2"]
    for day, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (0, 86_400 * day))
    paths = list(tmp_path.rglob("*-*"))
    by_time, order = report.in_order(paths, None)
    assert [path.relative_to(tmp_path).as_posix() for path in by_time] == names
    assert order == "in the order of the files' times"
    by_patient, order = report.in_order(paths, r"p\d+")
    assert [path.name[:2] for path in by_patient] == ["p1", "p1", "p2", "p2"]
    assert order.endswith("patient by patient")
    with pytest.raises(report.ReportError, match="finds nothing in"):
        report.in_order(paths, "q")


def test_a_window_without_an_alarm_is_exit_code_0(folder: Path) -> None:
    found = report.of_folder(folder / "varied", folder / "m.onnx")
    assert not found.windows["1–50"].alarm("class")
    calm = drift.Comparison(50, {signal: {"ks": (0.1, 0.7)} for signal in drift.MEANING}, found.last.shares)
    quiet = report.Findings("A test", found.promise, {"1–50": calm})
    assert quiet.alarms() == []
    assert "No drift in the windows of 50 images (1 in all)." in report.page(quiet)


def test_the_live_server_is_reported_on_like_a_folder(folder: Path, server: Server) -> None:
    done = run("--server", server.url, "--out", folder / "none.html")
    assert done.returncode == 1
    assert "has answered 0 images; a comparison needs 50" in done.stderr
    with httpx.Client(base_url=server.url) as client:
        for path in sorted((folder / "alike").glob("*.png")):
            assert client.post("/predict", content=path.read_bytes()).status_code == 200
        for _ in range(200):
            if client.get("/status.json").json()["drift"]["images"] >= 50:
                break
            time.sleep(0.1)
    done = run("--server", server.url, "--out", folder / "live.html")
    assert done.returncode == report.ALARM, done.stderr
    live = (folder / "live.html").read_text()
    assert "Drift in 1 of the windows of 50 images" in live
    assert live.count("<svg") == len(drift.SCALARS) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "{folder}/alike"], "--images and --model go together"),
        (["--images", "{folder}/none", "--model", "{folder}/m.onnx"], "has 0 images that can be read"),
        (["--server", "http://127.0.0.1:9"], "http://127.0.0.1:9/status.json"),
        (["--server", "file:///etc"], "is no address of a server"),
    ],
)
def test_what_cannot_be_reported_on_is_said(folder: Path, options: list[str], message: str) -> None:
    done = run(*(option.format(folder=folder) for option in options), "--out", folder / "none.html")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
