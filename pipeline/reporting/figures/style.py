"""How every figure looks, and what stands above it.

Colours are Okabe & Ito's (2008), told apart by people with any colour vision. Figures are drawn without
pyplot: no window, no open figures to close. Draw and `save` them inside `matplotlib.rc_context(STYLE)`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

from pipeline.reporting.datasheet import SYNTHETIC

BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
INK, FAINT = "#222222", "#767676"
# Each next one as far as can be from all before it, RED, INK, FAINT and white (CIELAB): 33 or more apart.
_COLOURS = (
    *(BLUE, ORANGE, GREEN, PURPLE, SKY, "#0000FF", "#00D200", "#FF00E1", "#4B1E96", "#FF005A", "#78960F", "#780F1E"),
    *("#694B00", "#FFA587", "#C387FF", "#D20087", "#0F4B00", "#FF0000", "#964BFF", "#691E5A", "#B4B478", "#5AD269"),
    *("#0078FF", "#5AD2D2"),
)
_DASHES, _TAILS, _GAP = (4, 7, 11, 16), ((), (1,), (1, 1), (2.5,), (1, 1, 1), (2.5, 2.5)), 1.3  # line widths
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
    "savefig.dpi": 300,
    "svg.hashsalt": "leukdetect",  # else each file has names of its own, and differs
}
_HEAD, _MARGIN = 1.0, 0.2  # inches: the strip for titles above each figure, and their distance from its left
_TITLE, _STAMP = 0.18, 0.24  # inches of that strip: above the title, and for a synthetic figure's stamp


def looks(n: int) -> list[tuple[str, Any]]:
    """A colour and a dash for each of n lines; of 24 none comes twice, of 576 no pair of both."""
    marks = [(_DASHES[i % 4], *_TAILS[(i + i // 4) % 6]) for i in range(24)]
    dashes = [(0, tuple(length for mark in each for length in (mark, _GAP))) for each in marks]
    return [(_COLOURS[i % 24], dashes[(i + i // 24) % 24]) for i in range(n)]


def legend(figure: Figure, *axes: Axes, **options: Any) -> None:
    """One legend of what the axes show, outside of all of them, so that it covers nothing."""
    known: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    look = {"loc": "outside lower left", "ncols": 2} | options
    figure.legend(list(known.values()), list(known), **look)


def blank(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches; above it the title, and room for what `save` puts there."""
    total, pad = height + _HEAD, _MARGIN / 2  # half the margin is the layout's own
    inside = (pad / width, pad / total, 1 - 2 * pad / width, (height - pad) / total)
    figure = Figure(figsize=(width, total), layout=ConstrainedLayoutEngine(rect=inside, w_pad=pad, h_pad=pad))
    figure.text(_MARGIN / width, 1 - _TITLE / total, title, fontsize=13, weight="bold", va="top")
    return figure


def save(figure: Figure, path: Path, sample: str, *, synthetic: bool, vector: bool = True) -> None:
    """Writes a figure of `blank` as a PNG, and an SVG beside it, below its title what was measured.

    Equal figures give equal bytes. A synthetic one is stamped, so that nobody shows it as a clinical result.
    """
    width, height = figure.get_size_inches()
    spare = 0 if synthetic else _STAMP  # cut off above the title, which comes down by as much
    figure.texts[0].set_y(1 - (_TITLE + spare) / height)
    figure.text(_MARGIN / width, 1 - (0.48 + spare) / height, sample, fontsize=9.5, va="top")
    if synthetic:
        figure.text(_MARGIN / width, 1 - 0.72 / height, SYNTHETIC, fontsize=9.5, va="top", color=RED, weight="bold")
    figure.draw_without_rendering()  # lays it out once for both files
    figure.set_layout_engine("none")
    for axes in figure.axes:  # the layout's last bits vary, and names in an SVG are made of them
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6).tolist())
    kept = Bbox([[0, 0], [width, height - spare]])
    figure.savefig(path, format="png", facecolor="white", metadata={"Software": None}, bbox_inches=kept)
    if vector:
        figure.savefig(path.with_suffix(".svg"), facecolor="white", metadata={"Date": None}, bbox_inches=kept)
