"""A Chromium for tests, and what they look for on the page."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import require

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
            resize(chrome, width, height)
            yield chrome
        finally:
            chrome.quit()


def resize(page: webdriver.Chrome, width: int, height: int) -> None:
    """Gives the page so many CSS pixels; under 600 it is a phone's."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def colours(page: webdriver.Chrome, scheme: str) -> None:
    """As a system set to `light` or `dark` has it."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def choose(page: webdriver.Chrome, *paths: object) -> None:
    """Chooses files, as the button does."""
    page.find_element(By.ID, "files").send_keys("\n".join(str(path) for path in paths))


def cards(page: webdriver.Chrome, count: int) -> list[WebElement]:
    """The result cards from the top, once `count` of them are answered."""
    done = (By.CSS_SELECTOR, "#results .card[aria-busy=false]")
    return WebDriverWait(page, 20).until(
        lambda _: len(page.find_elements(*done)) == count and page.find_elements(*done)
    )


def show_map(card: WebElement) -> WebElement:
    """Presses "Show where the model looked", and returns the map once it is there."""
    card.find_element(By.CSS_SELECTOR, ".look").click()
    return wait_for(card, ".picture canvas, .picture .overlay")


def wait_for(within: WebElement | webdriver.Chrome, selector: str) -> WebElement:
    """The first element that matches, once it is to be seen."""

    def seen(root: WebElement | webdriver.Chrome) -> WebElement | Literal[False]:
        return next((each for each in root.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()), False)

    return WebDriverWait(within, 20).until(seen)


def text(within: WebElement | webdriver.Chrome, selector: str) -> str:
    """The text of the first element that matches, as it is seen."""
    return within.find_element(By.CSS_SELECTOR, selector).text
