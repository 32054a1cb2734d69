"""What every test of the page needs: a server, a browser, and images to choose."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver

from pipeline.data import smears
from tests import tiny_model
from tests.browser.chromium import browser
from tests.server import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    index = tiny_model.index(thumbnails=True)
    tiny_model.write(folder / "m.onnx", bias=70.0, index=index)  # every smear is clearly pro
    flags = ("--model", str(folder / "m.onnx"), "--feedback-db", str(folder / "feedback.db"))
    with running(folder, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def page() -> Iterator[webdriver.Chrome]:
    with browser() as chrome:
        yield chrome


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered smear (as JPEG and TIFF), one too dark to judge, one blue in a corner, a broken file, and no image."""
    folder = tmp_path_factory.mktemp("images")
    smear = smears.golden(2, 96, 3)[1]
    (folder / "smear.jpg").write_bytes(smear)
    (folder / "broken.jpg").write_bytes(smear[: len(smear) // 2])
    (folder / "notes.txt").write_text("no image")
    Image.open(folder / "smear.jpg").save(folder / "smear.tif")
    corner = Image.new("RGB", (64, 48))
    corner.save(folder / "dark.png")
    corner.paste((0, 0, 255), (0, 24, 32, 48))
    corner.save(folder / "corner.png")
    return folder
