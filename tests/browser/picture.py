"""Takes the README's picture: `python -m tests.browser.picture URL IMAGE docs/page.png`, with a server at URL."""

import sys
from pathlib import Path

from tests.browser.chromium import browser, cards, choose, resize, show_map

if __name__ == "__main__":
    url, image, picture = sys.argv[1:]
    with browser(1000, 1000) as page:
        page.get(url)
        choose(page, Path(image).resolve())
        [card] = cards(page, 1)
        show_map(card)
        resize(page, 1000, page.execute_script("return document.documentElement.scrollHeight"))
        page.save_screenshot(picture)
