"""Abstention, drawn."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.evaluation.abstention import Abstention, Foreign, Referrals
from pipeline.reporting.figures.style import BLUE, FAINT, ORANGE, RED, SKY, blank, legend


def figure(confidence: np.ndarray, correct: np.ndarray, measured: Abstention) -> Figure:
    """The risk–coverage curve, and which check refers what share of each kind of foreign images."""
    drawn = blank(11, 5.0, "Abstention")
    curve, kinds = drawn.subplots(1, 2, width_ratios=(1, 1.1))
    _draw_curve(curve, confidence, correct, measured)
    legend(drawn, curve, ncols=4)
    _draw_kinds(kinds, {"held-out smears": measured, **measured.foreign})
    return drawn


def _draw_curve(axes: Any, confidence: np.ndarray, correct: np.ndarray, measured: Abstention) -> None:
    order = np.argsort(-confidence, kind="stable")
    covered = np.arange(1, len(order) + 1)
    area, risk = measured.aurc, measured.risk.value
    share, best = covered / len(order), np.maximum(covered - correct.sum(), 0) / covered
    axes.axhline(risk, color=ORANGE, linestyle="--", linewidth=1, label="at random")
    axes.plot(share, (~correct[order]).cumsum() / covered, color=BLUE, label="the most confident first")
    axes.plot(share, best, color=FAINT, linestyle=":", label="errors last: the best order")
    answered, wrong = 1 - measured.referred.value, measured.risk_reported.value
    axes.scatter(answered, wrong, 70, color=RED, edgecolor="white", zorder=5, label="as the server refers")
    axes.set_title(f"Risk–coverage: area {area}", fontsize=10, loc="left")
    axes.set(xlabel="Coverage (share answered)", ylabel="Risk (share of these wrong)", xlim=(0, 1.02))
    axes.set_ylim(0, 1.1 * max(risk, 0.01))
    axes.grid(True)


def _draw_kinds(axes: Any, rows: Mapping[str, Referrals]) -> None:
    left = np.zeros(len(rows))
    looks = {"unlikeness": ("unlikeness", BLUE), "quality": ("quality adds", ORANGE)}
    for check, (label, colour) in (looks | {"scores": ("scores add", SKY)}).items():
        widths = np.array([getattr(each.added_by, check).value for each in rows.values()])
        axes.barh(list(rows), widths, left=left, color=colour, label=label, height=0.7)
        left += widths
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 9, "va": "center", "ha": "right"}
    for place, each in enumerate(rows.values()):
        axes.text(1.16, place, f"{each.referred.value:.0%}", **beside)
        axes.text(1.40, place, f"{each.auroc.value:.3f}" if isinstance(each, Foreign) else "", **beside)
    for right, title in ((1.16, "in all"), (1.40, "AUROC of\nunlikeness")):
        axes.text(right, -0.75, title, **beside | {"va": "bottom", "color": FAINT})
    axes.axhline(0.5, color=FAINT, linewidth=0.8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="Share referred to a person")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, columnspacing=1, handlelength=1)
