"""Whether the model declines where it should: risk–coverage, false referrals, and images that are no smears.

The decisions are the server's own (`serving.decision`), from the same thresholds in the model file.
"""

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline import metrics, plots
from pipeline.onnx_model import OnnxModel
from serving import images
from serving.decision import Decision, decide


def decisions(model: OnnxModel, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Decision]]:
    """Probabilities [n, C], unlikeness [n] and what the server would say of uint8 [n, S, S, 3]."""
    outputs = model.predict(pixels, ("probabilities", "unlikeness"))
    said = [
        decide(p, float(u), images.brightness(x), images.sharpness(x), images.stain(x), model.contract)
        for p, u, x in zip(outputs["probabilities"], outputs["unlikeness"], pixels, strict=True)
    ]
    return outputs["probabilities"], outputs["unlikeness"], said


def risk_coverage(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the risk–coverage curve (AURC; Geifman and El-Yaniv 2017): [R]; 0 is best.

    The mean, over coverages, of the share of wrong answers among the most confident ones. Images of equal confidence
    share their risk.
    """
    _, ties = np.unique(-confidence, return_inverse=True)
    drawn, wrong = (np.zeros((len(weights), ties.max() + 1)) for _ in range(2))
    for column in range(ties.max() + 1):
        here = ties == column
        drawn[:, column], wrong[:, column] = weights[:, here].sum(1), (weights[:, here] * ~correct[here]).sum(1)
    covered = drawn.cumsum(1)
    risk = np.divide(wrong.cumsum(1), covered, out=np.zeros_like(covered), where=covered > 0)
    area: np.ndarray = (risk * drawn).sum(1) / drawn.sum(1)
    return area


def measure(
    model: OnnxModel, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray, foreign: dict[str, np.ndarray]
) -> dict[str, Any]:
    """How the model file abstains on held-out smears [N, S, S, 3], and on each kind of foreign images [n, S, S, 3].

    AUROC: the chance that a foreign image's unlikeness is above a smear's. Intervals resample the smears' groups and
    the foreign images one by one.
    """
    probabilities, unlikeness, said = decisions(model, pixels)
    referred = np.array([each.kind == "refer" for each in said])
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    error = metrics.mean(~correct, weights)
    return {
        "false_referrals": metrics.estimate(metrics.mean(referred & correct, weights)),
        "referred": metrics.estimate(metrics.mean(referred, weights)),
        "referred_for": {
            code: metrics.estimate(
                metrics.mean(np.array([code in [r.code for r in each.reasons] for each in said]), weights)
            )
            for code in sorted(Counter(reason.code for each in said for reason in each.reasons))
        },
        "unlike": metrics.estimate(metrics.mean(unlikeness > 1, weights)),
        "risk": metrics.estimate(error),
        "risk_reported": metrics.estimate(metrics.mean(~correct, weights * ~referred)),
        "aurc": metrics.estimate(risk_coverage(confidence, correct, weights)),
        "foreign": {name: _of_kind(model, theirs, unlikeness, weights) for name, theirs in foreign.items()},
    }


def _of_kind(model: OnnxModel, theirs: np.ndarray, unlikeness: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    _, distance, said = decisions(model, theirs)
    n = len(theirs)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), len(weights) - 1)
    own = np.concatenate([np.ones((1, n)), draws])
    scores, foreign = np.concatenate([unlikeness, distance]), np.arange(len(unlikeness) + n) >= len(unlikeness)
    referred = np.array([each.kind == "refer" for each in said])
    return {
        "images": n,
        "auroc": metrics.estimate(metrics.auroc(scores, foreign, np.concatenate([weights, own], axis=1))),
        "unlike": metrics.estimate(metrics.mean(distance > 1, own)),
        "referred": metrics.estimate(metrics.mean(referred, own)),
    }


def figure(model: OnnxModel, pixels: np.ndarray, labels: np.ndarray, measured: dict[str, Any]) -> Figure:
    """The risk–coverage curve, and what share of each kind of foreign images is referred."""
    probabilities = model.predict(pixels)["probabilities"]
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(-confidence, kind="stable")
    covered = np.arange(1, len(order) + 1)
    drawn = plots.blank(10, 4.4, "Abstention")
    curve, kinds = drawn.subplots(1, 2)
    area, risk = measured["aurc"], measured["risk"]
    curve.plot(covered / len(order), (~correct[order]).cumsum() / covered, color=plots.BLUE, label="by confidence")
    best = np.maximum(covered - correct.sum(), 0) / covered
    curve.plot(covered / len(order), best, color=plots.FAINT, linestyle=":", label="errors last: the best order")
    curve.axhline(risk.value, color=plots.ORANGE, linestyle="--", linewidth=1, label="at random")
    curve.set_title(f"AURC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]", fontsize=10)
    curve.set(xlabel="Coverage (share answered)", ylabel="Risk (share of these wrong)", xlim=(0, 1.01), ylim=(0, None))
    curve.grid(True)
    curve.legend(loc="upper left")

    rows = {"held-out smears": measured} | measured["foreign"]
    values = [each["referred"] for each in rows.values()]
    texts = ["", *(f"  AUROC {each['auroc'].value:.3f}" for each in measured["foreign"].values())]
    colours = [plots.GREEN, *[plots.RED] * len(measured["foreign"])]
    bars = kinds.barh(list(rows), [value.value for value in values], color=colours)
    kinds.bar_label(
        bars, [f"{v.value:.0%}{text}" for v, text in zip(values, texts, strict=True)], padding=3, fontsize=8
    )
    kinds.invert_yaxis()
    kinds.set(xlim=(0, 1.55), xticks=[0, 0.5, 1], xlabel="Share referred", title="")
    return drawn
