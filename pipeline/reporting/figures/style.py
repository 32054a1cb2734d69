"""How every figure looks, and what stands above it.

Colours are Okabe & Ito's (2008), told apart by people with any colour vision. Figures are drawn without
pyplot: no window, no open figures to close. Draw and `save` them inside `matplotlib.rc_context(STYLE)`.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

from pipeline.reporting.datasheet import SYNTHETIC

BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, FAINT = "#222222", "#767676"
_LINES = ((BLUE, "--"), (ORANGE, "-."), (GREEN, (0, (1, 1))), (PURPLE, (0, (5, 1, 1, 1))), (SKY, (0, (8, 3))))
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": 150,
}
_HEAD, _MARGIN = 1.0, 0.2  # inches: the strip for titles above each figure, and their distance from its left
_TITLE, _STAMP = 0.18, 0.24  # inches of that strip: above the title, and for a synthetic figure's stamp


def looks(n: int) -> list[tuple[str, Any]]:
    """A colour and a dash for each of n lines, 25 at most; no two lines have both alike."""
    return [(_LINES[i % 5][0], _LINES[(i + i // 5) % 5][1]) for i in range(n)]


def blank(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches; above it the title, and room for what `save` puts there."""
    total, pad = height + _HEAD, _MARGIN / 2  # half the margin is the layout's own
    inside = (pad / width, pad / total, 1 - 2 * pad / width, (height - pad) / total)
    figure = Figure(figsize=(width, total), layout=ConstrainedLayoutEngine(rect=inside, w_pad=pad, h_pad=pad))
    figure.text(_MARGIN / width, 1 - _TITLE / total, title, fontsize=13, weight="bold", va="top")
    return figure


def save(figure: Figure, path: Path, sample: str, *, synthetic: bool) -> None:
    """Writes a figure of `blank` as a PNG, below its title what was measured. Equal figures give equal bytes.

    A synthetic one is stamped, so that nobody shows it as a clinical result.
    """
    width, height = figure.get_size_inches()
    spare = 0 if synthetic else _STAMP  # cut off above the title, which comes down by as much
    figure.texts[0].set_y(1 - (_TITLE + spare) / height)
    figure.text(_MARGIN / width, 1 - (0.48 + spare) / height, sample, fontsize=9.5, va="top")
    if synthetic:
        figure.text(_MARGIN / width, 1 - 0.72 / height, SYNTHETIC, fontsize=9.5, va="top", color=RED, weight="bold")
    kept = Bbox([[0, 0], [width, height - spare]])
    figure.savefig(path, format="png", facecolor="white", metadata={"Software": None}, bbox_inches=kept)
