"""The status page in a real Chromium, of a real server under a little traffic."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from leukdetect import drift
from tests import tiny_model
from tests.browser.chromium import colours, resize, text, wait_for
from tests.browser.test_accessibility import violations
from tests.conftest import require
from tests.server import Server, running


@pytest.fixture(scope="module")
def busy(server: Server, images: Path) -> Server:
    """The server after sixty images that are all alike, and one that is none."""
    with httpx.Client(base_url=server.url) as client:
        for _ in range(60):
            assert client.post("/predict", content=(images / "smear.jpg").read_bytes()).status_code == 200
        assert client.post("/predict", content=b"no image").status_code == 415
    return server


@pytest.fixture
def status(page: webdriver.Chrome, busy: Server) -> Iterator[webdriver.Chrome]:
    page.get_log("browser")  # what was before
    page.get(f"{busy.url}/status")
    WebDriverWait(page, 30).until(lambda _: page.find_elements(By.CSS_SELECTOR, "#drift li"))
    yield page
    colours(page, "light")
    resize(page, 1100, 900)


def figure(page: webdriver.Chrome, name: str) -> str:
    groups = page.find_elements(By.CSS_SELECTOR, "#figures div")
    return next(text(group, "dd") for group in groups if text(group, "dt") == name)


def test_it_shows_latency_answers_and_requests(status: webdriver.Chrome) -> None:
    assert figure(status, "Server") == "ok"
    assert figure(status, "/predict, median").endswith(" ms")
    rows = [row.text.split() for row in status.find_elements(By.CSS_SELECTOR, "#latency tbody tr")]
    assert [row[0] for row in rows] == ["read", "decode", "queue", "infer", "respond", "all"]
    assert [row[1] for row in rows[:5]] == ["60"] * 5
    counts = {
        row.text.split("\n")[0]: row.text.split("\n")[-1] for row in status.find_elements(By.CSS_SELECTOR, ".bars li")
    }
    assert counts["Pro-B ALL"] == "60"
    assert counts["200"] == "60"
    assert counts["/predict"] == "61"
    assert any(name.startswith("415") and count == "1" for name, count in counts.items())
    assert status.find_element(By.CSS_SELECTOR, "#latency svg").get_attribute("aria-label")
    assert "no clinical meaning" in text(status, "#synthetic")


def test_it_shows_each_signal_against_its_threshold_and_names_the_alarms(status: webdriver.Chrome) -> None:
    rows = status.find_elements(By.CSS_SELECTOR, "#drift li")
    assert len(rows) == len(drift.MEANING)
    assert "The last 50 answers differ from the validation images in" in text(status, "#drift .said")
    states = {text(row, ".name"): text(row, ".state") for row in rows}
    assert states["Brightness"] == "Alarm"
    assert states["Embedding"] == "As expected"
    [brightness] = [row for row in rows if text(row, ".name") == "Brightness"]
    assert drift.MEANING["brightness"] in brightness.text
    statistic, _, threshold = text(brightness, ".test:nth-child(2) .numbers").split()
    bar = brightness.find_element(By.CSS_SELECTOR, ".test:nth-child(2) progress")
    assert float(threshold) == pytest.approx(0.7)
    drawn = float(str(bar.get_property("value")))
    assert drawn == pytest.approx(min(float(statistic) / float(threshold) / 2, 1), abs=0.02)  # the line is at a half


def test_it_asks_nothing_of_the_outside_and_breaks_no_policy(status: webdriver.Chrome, busy: Server) -> None:
    asked = status.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert asked
    assert all(url.startswith(busy.url) for url in asked)
    assert [entry for entry in status.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_it_goes_on_by_itself(status: webdriver.Chrome, busy: Server, images: Path) -> None:
    httpx.post(f"{busy.url}/explain", content=(images / "smear.jpg").read_bytes())
    WebDriverWait(status, 20).until(lambda _: "/explain" in text(status, ".routes"))


def test_it_says_when_the_server_is_gone_and_keeps_what_it_had(page: webdriver.Chrome, tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    with running(tmp_path, "--model", str(tmp_path / "m.onnx")) as server:
        page.get(f"{server.url}/status")
        wait_for(page, "#figures")
        assert not page.find_element(By.ID, "note").is_displayed()
        assert text(page, "#drift .said") == "0 of the 50 answers that a comparison needs."
    WebDriverWait(page, 20).until(lambda _: page.find_element(By.ID, "note").is_displayed())
    assert "could not be asked" in text(page, "#note")
    assert figure(page, "Server") == "ok"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_axe_finds_nothing_and_a_phone_scrolls_one_way(status: webdriver.Chrome, scheme: str, width: int) -> None:
    package = find_spec("axe_playwright_python")
    require(package, "axe-playwright-python, which carries axe-core, is not installed")
    assert package
    assert package.origin
    resize(status, width, 740)
    colours(status, scheme)
    assert violations(status, Path(package.origin).with_name("axe.min.js").read_text()) == {}
    assert status.execute_script("return document.documentElement.scrollWidth") <= width
