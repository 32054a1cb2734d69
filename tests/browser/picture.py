"""Takes the README's picture: `python -m tests.browser.picture URL IMAGE docs/page.png`, with a server at URL."""

import sys
from pathlib import Path

from tests.browser.test_page import browser, cards

if __name__ == "__main__":
    url, image, picture = sys.argv[1:]
    with browser(1000, 1000) as page:
        page.get(url)
        page.find_element("id", "files").send_keys(str(Path(image).resolve()))
        cards(page, 1)
        page.save_screenshot(picture)
