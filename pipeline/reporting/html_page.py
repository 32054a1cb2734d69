"""Pages of the model card, the data's sheet and the plots, fit for a phone."""

import base64
from pathlib import Path

from markdown_it import MarkdownIt

from leukdetect import page

PAGE = Path(__file__).with_name("report.html.jinja")
# Only these, where the data's licence lets no image travel with the model: the others show some.
FIGURES = {
    "confusion_matrix": "Which classes are taken for which",
    "roc": "Sensitivity against specificity",
    "calibration": "Does confidence mean what it says?",
    "explanations": "Tests of the maps of where the model looked",
    "abstention": "Does it decline where it should?",
    "training_curves": "How training went",
    "learning_curve": "Held-out folds: would more images help?",
}
PICTURES = {
    "overlays": "Where the model looked, for images spread over those held out. A view into the model, no proof"
}


def render(card: str, datasheet: str = "", figures: Path | None = None, *, pictures: bool = False) -> str:
    """A card and a datasheet (Markdown; its HTML is shown as text) on one page, with those of `FIGURES` that are there.

    With `pictures` those of `PICTURES` too, which show images of the data: only where its licence lets some travel.
    """
    shown = FIGURES | (PICTURES if pictures else {})
    return page.render(
        PAGE,
        title=card.splitlines()[0].removeprefix("# "),
        text=_html(card),
        figures={text: each for name, text in shown.items() if figures and (each := _embedded(figures, name))},
        rest=_html(datasheet),
    )


def _embedded(figures: Path, name: str) -> str | None:
    """A figure's vector file, which is sharp at any size and smaller, else the other; None: there is neither."""
    for kind, media in {"svg": "svg+xml", "png": "png"}.items():
        if (path := figures / f"{name}.{kind}").is_file():
            return f"data:image/{media};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return None


def _html(markdown: str) -> str:
    rendered: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return rendered.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
