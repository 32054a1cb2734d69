"""The page in a real Chromium, against the real server, with rendered smears."""

import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pipeline import smears
from tests import tiny_model
from tests.conftest import require
from tests.server import Server, running

CHROMIUM = shutil.which("chromium") or ""
DRIVER = shutil.which("chromedriver") or ""


@contextmanager
def browser(width: int = 1100, height: int = 900) -> Iterator[webdriver.Chrome]:
    """A Chromium with a fresh profile, that asks nothing of the outside."""
    require(CHROMIUM and DRIVER, "chromium and chromedriver are not installed")
    # Not under pytest's own folder: its long path overflows the profile's socket.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            yield chrome
        finally:
            chrome.quit()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    tiny_model.write(folder / "m.onnx", bias=70.0)  # every smear is clearly pro
    with running(folder, "--model", str(folder / "m.onnx")) as server:
        yield server


@pytest.fixture(scope="module")
def page() -> Iterator[webdriver.Chrome]:
    with browser() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered smear, one too dark to judge, a broken file and one that is no image."""
    folder = tmp_path_factory.mktemp("images")
    smear = smears.golden(2, 96, 3)[1]
    (folder / "smear.jpg").write_bytes(smear)
    (folder / "broken.jpg").write_bytes(smear[: len(smear) // 2])
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (64, 64)).save(folder / "dark.png")
    return folder


def cards(page: webdriver.Chrome, count: int) -> list[WebElement]:
    """The result cards, newest first, once `count` of them are answered."""
    done = (By.CSS_SELECTOR, "#results .card[aria-busy=false]")
    return WebDriverWait(page, 20).until(
        lambda _: len(page.find_elements(*done)) == count and page.find_elements(*done)
    )


def text(card: WebElement, selector: str) -> str:
    return card.find_element(By.CSS_SELECTOR, selector).text


def share(bar: WebElement) -> float:
    """How long a bar is drawn."""
    return float(str(bar.find_element(By.TAG_NAME, "progress").get_property("value")))


def test_a_chosen_image_shows_its_class_its_bars_and_its_model(
    page: webdriver.Chrome, server: Server, images: Path
) -> None:
    page.get(server.url)
    page.find_element(By.ID, "files").send_keys(str(images / "smear.jpg"))
    [card] = cards(page, 1)
    verdict = text(card, ".verdict")
    assert verdict == "Pro-B ALL"
    assert text(card, ".wording").startswith(f"Resembles {verdict};")
    bars = card.find_elements(By.CSS_SELECTOR, ".bars li")
    assert [bar.text.split("\n")[0] for bar in bars] == [each.label for each in tiny_model.CLASSES]
    assert sum(share(bar) for bar in bars) == pytest.approx(1)
    assert text(card, ".bars .highest").startswith(verdict)
    assert "operating point of 40.0" in text(card, ".malignant")
    assert text(card, "figcaption") == "smear.jpg"
    preview = card.find_element(By.TAG_NAME, "img")
    assert WebDriverWait(page, 5).until(lambda _: preview.get_property("naturalWidth")) == 96
    card.find_element(By.TAG_NAME, "summary").click()
    assert "JPEG, 96 × 96 pixels" in text(card, "dl")


def test_the_page_says_what_it_is_not(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url)
    WebDriverWait(page, 5).until(lambda _: page.find_element(By.ID, "synthetic").is_displayed())
    assert "no clinical meaning" in page.find_element(By.ID, "synthetic").text
    assert "Not a medical device" in page.find_element(By.ID, "disclaimer").text
    assert page.find_element(By.ID, "model").text.startswith("leukdetect, file ")


def test_several_images_each_get_a_card_and_errors_are_in_words(
    page: webdriver.Chrome, server: Server, images: Path
) -> None:
    page.get(server.url)
    paths = [str(images / name) for name in ("dark.png", "broken.jpg", "notes.txt")]
    page.find_element(By.ID, "files").send_keys("\n".join(paths))
    notes, broken, dark = cards(page, 3)
    assert text(dark, ".verdict") == "Not reported"
    assert text(dark, ".wording").startswith("Refer to a haematologist: the image is too dark")
    assert "The mean brightness is 0 of 255" in text(dark, ".reasons")
    assert text(broken, ".verdict") == "The image cannot be read"
    assert "truncated or corrupt" in text(broken, ".wording")
    assert text(notes, ".verdict") == "Not an image of a known type"
    assert "send JPEG" in text(notes, ".wording")


DROP = """
const [name, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
document.querySelector("#drop").dispatchEvent(drop);
"""


def test_a_dropped_image_is_examined(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url)
    WebDriverWait(page, 5).until(lambda _: page.find_element(By.ID, "synthetic").is_displayed())
    page.execute_script(DROP, "dropped.jpg", base64.b64encode(smears.golden(1, 96, 3)[0]).decode())
    [card] = cards(page, 1)
    assert text(card, "figcaption") == "dropped.jpg"
    assert text(card, ".wording").startswith("Resembles")


def test_the_keyboard_reaches_the_button_first_and_the_details_later(
    page: webdriver.Chrome, server: Server, images: Path
) -> None:
    page.get(server.url)
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    focused = page.switch_to.active_element
    assert focused.get_attribute("id") == "files"
    focused.send_keys(str(images / "smear.jpg"))
    [card] = cards(page, 1)
    webdriver.ActionChains(page).send_keys(Keys.TAB).perform()  # keys sent to the input itself would name a file
    summary = page.switch_to.active_element
    assert summary.tag_name == "summary"
    summary.send_keys(Keys.ENTER)
    assert card.find_element(By.TAG_NAME, "details").get_property("open")


def test_a_phone_needs_no_sideways_scrolling(server: Server, images: Path) -> None:
    with browser(width=360, height=740) as phone:
        phone.get(server.url)
        phone.find_element(By.ID, "files").send_keys(f"{images / 'smear.jpg'}\n{images / 'dark.png'}")
        for card in cards(phone, 2):
            card.find_element(By.TAG_NAME, "summary").click()
        assert phone.execute_script("return document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_asks_nothing_of_elsewhere_and_breaks_no_policy(
    page: webdriver.Chrome, server: Server, path: str
) -> None:
    page.get_log("performance")
    page.get_log("browser")
    page.get(server.url + path)
    WebDriverWait(page, 10).until(
        lambda _: page.find_elements(By.CSS_SELECTOR, "#synthetic:not([hidden]), .opblock-summary")
    )
    urls = {
        entry["message"].partition('"url":"')[2].partition('"')[0]
        for entry in page.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    }
    asked = {url for url in urls if not url.startswith(("data:", "blob:"))}
    assert asked
    assert all(url.startswith(server.url) for url in asked), asked
    assert page.get_log("browser") == []


def test_colours_follow_the_system(page: webdriver.Chrome, server: Server) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.get(server.url)
        grounds.append(page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
    assert grounds[0] != grounds[1]


def test_a_server_that_went_away_is_said_in_words(page: webdriver.Chrome, images: Path, tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    with running(tmp_path, "--model", str(tmp_path / "m.onnx")) as server:
        page.get(server.url)
        WebDriverWait(page, 5).until(lambda _: page.find_element(By.ID, "synthetic").is_displayed())
        server.stop()
    page.find_element(By.ID, "files").send_keys(str(images / "smear.jpg"))
    [card] = cards(page, 1)
    assert text(card, ".verdict") == "No answer"
    assert "cannot be reached" in text(card, ".wording")
