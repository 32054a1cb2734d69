"""What `pipeline.evaluation.explanations` found, drawn; within `style.STYLE`."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pipeline.evaluation.answers import Maps, enlarged
from pipeline.evaluation.explanations import STEPS, Altered, Explanations
from pipeline.evaluation.metrics import Estimate
from pipeline.reporting.figures.style import BLUE, FAINT, GREEN, INK, ORANGE, blank, legend
from pipeline.reporting.model_card import BESIDE, PARTS

SHOWN = 8  # overlays


def tests(measured: Explanations) -> Figure:
    """Deletion and insertion, what is left of the maps without the weights, and how much is on the cell."""
    figure = blank(10, 7.6 if measured.cell else 7.2, "Where the model looked: tests of the maps")
    panels = figure.subplots(2, 2).ravel()
    _curves(panels[0], "Deletion", measured.deletion, measured.altered_images)
    _curves(panels[1], "Insertion", measured.insertion, measured.altered_images)
    legend(figure, *panels[:2])
    panels[2].set_title("Left of the map: rank correlation with it", fontsize=10)
    if measured.randomised:
        left = {title: measured.randomised[name].correlation for name, title in PARTS.items()}
        _bars(panels[2], left, (-1, 1), BLUE)
        panels[2].axvline(0, color=FAINT, linewidth=1)
    if measured.cell:
        energy = {title: getattr(measured.cell.energy, name) for name, title in BESIDE.items()}
        _bars(panels[3], energy, (0, 1), GREEN)
        panels[3].set_title("Share of the map's energy in the cell", fontsize=10)
    else:
        panels[3].axis("off")
        panels[3].text(0, 0.5, "Where the cells are is not known in this data.", color=FAINT)
    return figure


def overlays(seen: Maps, labels: np.ndarray, names: list[str], cells: np.ndarray | None) -> Figure:
    """Images spread evenly over those held out, not chosen for their maps, with the map and the cell's edge.

    Below each: actual → predicted.
    """
    rows = np.linspace(0, len(seen.pixels) - 1, min(SHOWN, len(seen.pixels))).round().astype(int)
    side = seen.pixels.shape[1]
    h, w = seen.grid.shape[1:]
    figure = blank(10, 5.6, f"Where the model looked for the class it gave (maps of {h} × {w} positions)")
    # At fixed places: the layout engine's last bits vary, an outline shows them, and equal maps must give equal bytes
    figure.set_layout_engine("none")
    places = {"left": 0.02, "right": 0.91, "bottom": 0.09, "top": 0.84, "wspace": 0.08, "hspace": 0.25}
    for axes, row in zip(figure.subplots(2, SHOWN // 2, gridspec_kw=places).ravel(), rows, strict=False):
        grid = seen.grid[row : row + 1]
        axes.imshow(seen.pixels[row], interpolation="bicubic")
        if grid.max() > 0:
            [large] = enlarged(grid / grid.max(), side)
            axes.imshow(large, cmap="viridis", alpha=0.65 * large, vmin=0, vmax=1)
        if cells is not None:
            axes.contour(cells[row], [0.5], colors="white", linewidths=1.2)
        empty = "" if grid.max() > 0 else ", empty map"
        text = f"{names[labels[row]]}\n→ {names[seen.predicted[row]]}{empty}"
        axes.set_xlabel(text, fontsize=9, linespacing=1.35)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    colours = ScalarMappable(Normalize(0, 1), "viridis")
    bar = figure.colorbar(colours, cax=figure.add_axes((0.93, 0.09, 0.015, 0.75)), label="Share of the map's highest")
    bar.outline.set_visible(False)
    return figure


def _curves(axes: Axes, title: str, found: Altered | None, images: int | None) -> None:
    if found is None:
        axes.set_title(title, fontsize=10)
        axes.axis("off")
        axes.text(0, 0.5, "Every map is empty.", color=FAINT)
        return
    share = np.linspace(0, 1, STEPS + 1)
    for curve, colour, dashes, order in (
        (found.curves.map, BLUE, "-", "the map's"),
        (found.curves.random, ORANGE, "--", "a random map's"),
    ):
        axes.plot(share, curve, color=colour, linestyle=dashes, marker=".", label=f"pixels in {order} order")
    gain = found.gain
    axes.set_title(f"{title}: area {found.map.value:.3f}, at random {found.random.value:.3f}", fontsize=10)
    gained = f"gain {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    axes.set(xlabel=f"Share of pixels ({images} images)\n{gained}", ylabel="Probability of the class")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(True)


def _bars(axes: Axes, values: dict[str, Estimate], limits: tuple[float, float], colour: str) -> None:
    middle = [each.value for each in values.values()]
    ends = [[each.value - each.low for each in values.values()], [each.high - each.value for each in values.values()]]
    axes.barh(list(values), middle, color=colour, xerr=ends, error_kw={"ecolor": INK, "capsize": 3})
    for place, each in enumerate(values.values()):
        axes.annotate(f"{each.value:.2f}", (max(each.high, 0), place), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set(xlim=(limits[0], limits[1] + 0.15))
