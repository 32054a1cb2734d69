"""Takes the README's picture: `python -m tests.browser.picture URL IMAGE docs/page.png`, with a server at URL."""

import sys
from pathlib import Path

from tests.browser.chromium import browser, cards, choose, resize, show_map, text

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    url, image, picture = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3]
    if not image.is_file():
        sys.exit(f"{image} is no file")
    with browser(1000, 1000) as page:
        page.get(url)
        choose(page, image)
        [card] = cards(page, 1)
        if not card.find_elements("css selector", ".found"):  # a problem takes the place of what was found
            sys.exit(f"{image.name} was not examined. {text(card, '.verdict')}: {text(card, '.wording')}")
        show_map(card)
        resize(page, 1000, page.execute_script("return document.documentElement.scrollHeight"))
        page.save_screenshot(picture)
