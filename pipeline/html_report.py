"""One page with the model card, the data's sheet and the plots: no script, nothing from elsewhere, fit for a phone."""

import base64
import hashlib
import html
from pathlib import Path

from markdown_it import MarkdownIt

# Only these: the others show images, and no patient's image ever travels with a model.
FIGURES = {
    "confusion_matrix": "Which classes are taken for which",
    "roc": "Sensitivity against specificity",
    "calibration": "Does confidence mean what it says?",
    "training_curves": "How training went",
    "learning_curve": "Held-out folds: would more images help?",
}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
blockquote { margin: 1rem 0; padding: .5rem 1rem; border-left: 4px solid #d55e00; background: #fff6ef; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; } img { max-width: 100%; height: auto; }
code { overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10pt; } }
@media print { figure, tr { break-inside: avoid; } .wide { overflow: visible; } }
"""


def render(card: str, datasheet: str, figures: Path) -> str:
    """The page.

    Args:
        card, datasheet: Markdown; what they say of HTML is shown as text.
        figures: the folder of PNGs; those of `FIGURES` that are there become part of the page.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = markdown.render(card)
    title = html.escape(card.splitlines()[0].removeprefix("# "))
    drawn = [_figure(figures / f"{name}.png", caption) for name, caption in FIGURES.items()]
    text = body + "<h2>Plots</h2>\n" + "".join(drawn) + markdown.render(datasheet)
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
