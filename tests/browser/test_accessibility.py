"""What axe-core, the engine of most accessibility checkers, says of the page in every state that it can be in."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browser.chromium import cards, choose, colours, resize, show_map, wait_for
from tests.conftest import require
from tests.server import Server


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's source, as the Python package for another browser driver carries it."""
    package = find_spec("axe_playwright_python")
    require(package, "axe-playwright-python, which carries axe-core, is not installed")
    assert package
    assert package.origin
    return Path(package.origin).with_name("axe.min.js").read_text()


def violations(page: webdriver.Chrome, axe: str) -> dict[str, list[str]]:
    """The rules that the page breaks, and the elements that do."""
    page.execute_script(axe)
    found: list[dict[str, Any]] = page.execute_async_script(
        "const done = arguments[0]; axe.run(document).then(({ violations }) => done(violations));"
    )
    return {f"{each['id']} ({each['impact']})": [node["html"][:200] for node in each["nodes"]] for each in found}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_axe_finds_nothing(
    page: webdriver.Chrome, server: Server, images: Path, axe: str, scheme: str, width: int
) -> None:
    try:
        resize(page, width, 740)
        colours(page, scheme)
        page.get(server.url)
        wait_for(page, "#synthetic")
        assert violations(page, axe) == {}, "before anything is chosen"
        choose(page, *(images / name for name in ("smear.jpg", "dark.png", "smear.tif", "broken.jpg", "notes.txt")))
        assert len(cards(page, 5)) == 5
        assert violations(page, axe) == {}, "answers, a referral, errors"
        for card in cards(page, 5)[:3]:
            show_map(card)
        for summary in page.find_elements(By.TAG_NAME, "summary"):
            summary.click()
        wait_for(page, "#about dl")
        assert violations(page, axe) == {}, "maps, details, the model"
        page.execute_script("document.querySelector('#key').showModal()")
        assert violations(page, axe) == {}, "the question for a key"
    finally:
        colours(page, "light")
        resize(page, 1100, 900)


def test_axe_would_find_something(page: webdriver.Chrome, server: Server, axe: str) -> None:
    page.get(server.url)
    page.execute_script("document.querySelector('#files').removeAttribute('id')")  # its label's
    assert any(rule.startswith("label ") for rule in violations(page, axe))
