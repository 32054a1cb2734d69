"""Pages of the model card, the data's sheet and the plots: no script, nothing from elsewhere, fit for a phone."""

import base64
import hashlib
import html
from pathlib import Path

from markdown_it import MarkdownIt

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
    "overlays": "Where the model looked, for images spread over the test split. A view into the model, no proof"
}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
blockquote { margin: 1rem 0; padding: .5rem 1rem; border-left: 4px solid #d55e00; background: #fff6ef; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td:nth-child(2) { white-space: nowrap; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; } img { max-width: 100%; height: auto; }
code { overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10pt; } }
@media print { figure, tr { break-inside: avoid; } .wide { overflow: visible; } }
"""


def render(card: str, datasheet: str, figures: Path, *, pictures: bool = False) -> str:
    """All of it on one page.

    Args:
        card, datasheet: Markdown; what they say of HTML is shown as text.
        figures: the folder of PNGs; those of `FIGURES` that are there become part of the page.
        pictures: those of `PICTURES` too, which show images of the data: only where its licence lets some travel.
    """
    shown = FIGURES | (PICTURES if pictures else {})
    drawn = [_figure(figures / f"{name}.png", caption) for name, caption in shown.items()]
    return _page(card, _html(card) + "<h2>Plots</h2>\n" + "".join(drawn) + _html(datasheet))


def render_datasheet(datasheet: str) -> str:
    """The data's sheet, Markdown, on a page of its own."""
    return _page(datasheet, _html(datasheet))


def _html(markdown: str) -> str:
    rendered: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return rendered


def _page(markdown: str, text: str) -> str:
    """A page of HTML with the Markdown's first heading as its title."""
    title = html.escape(markdown.splitlines()[0].removeprefix("# "))
    text = text.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    # The page forbids itself everything but its own style and pictures, wherever it is opened.
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{text}</body>
</html>
"""


def _figure(path: Path, caption: str) -> str:
    if not path.is_file():
        return ""
    picture = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{caption}" src="data:image/png;base64,{picture}">'
    return f"<figure><figcaption>{caption}</figcaption>{image}</figure>\n"
