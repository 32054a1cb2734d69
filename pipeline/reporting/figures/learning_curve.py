"""The learning curve over grouped folds, drawn."""

from matplotlib.figure import Figure

from pipeline.evaluation.learning_curve import Folds
from pipeline.reporting.figures.style import BLUE, FAINT, ORANGE, SKY, blank, legend


def sample(found: Folds) -> str:
    """What was measured, for below the figure's title."""
    last = list(found.by_share.values())[-1]
    return f"Each held out once, n = {last.images} images in {last.groups} groups; every point trained anew"


def figure(measured: Folds) -> Figure:
    """Balanced accuracy over training images, of what `pipeline.cross_validate` wrote."""
    points = list(measured.by_share.values())
    trained = [point.trained_on for point in points]
    drawn = blank(7, 4.8, f"Learning curve over {measured.folds} grouped folds")
    axes = drawn.subplots()
    for name, title, colour, marker in (
        ("colour_only", "colour only, 95 % over groups", ORANGE, "s"),
        ("balanced_accuracy", "the recipe, 95 % over groups", BLUE, "o"),
    ):
        found = [getattr(point, name) for point in points]
        bars = [[each.value - each.low for each in found], [each.high - each.value for each in found]]
        axes.errorbar(
            trained, [each.value for each in found], bars, color=colour, marker=marker, capsize=4, label=title
        )
    for point in points:
        # A little to the right of the interval, so that neither hides the other.
        beside = [point.trained_on + 0.02 * max(trained)] * len(point.each_fold)
        axes.plot(beside, point.each_fold, ".", color=SKY, label="one fold" if point is points[0] else None)
    chance = 1 / len(points[0].__pydantic_extra__)
    axes.axhline(chance, color=FAINT, linestyle=":", linewidth=1, label="chance")
    axes.set(xlim=(0, 1.08 * max(trained)), ylim=(0, 1.02))
    axes.set(xlabel="Training images (mean over folds)", ylabel="Balanced accuracy, held-out folds")
    axes.grid(True)
    legend(drawn, axes, reverse=True)  # the recipe first
    return drawn
