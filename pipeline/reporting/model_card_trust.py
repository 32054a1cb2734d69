"""The model card's sections on whether to believe it: calibration, prediction sets, abstention, explanations."""

from typing import Any

from leukdetect.contract import Contract
from pipeline.evaluation import out_of_distribution
from pipeline.evaluation.compare import sentence
from pipeline.evaluation.metrics import McNemar
from pipeline.reporting.markdown import interval, percent, table

COARSE = 5  # positions a side; with fewer a map says little more than which quarter
PARTS = {
    "other_images": "another image's map",
    "head": "head shuffled",
    "head_and_last_fifth": "… and a fifth of the base",
    "everything": "everything shuffled",
}
BESIDE = {
    "map": "the map",
    "centre": "a centre Gaussian",
    "uniform": "everywhere alike",
    "best": "the best on this grid",
}


def comparisons(measured: dict[str, Any]) -> str:
    """McNemar's tests, in words."""
    int8 = McNemar(**measured["int8_vs_fp32"]["mcnemar"])
    colour = McNemar(**measured["mcnemar_over_colour"])
    return f"{sentence(int8, 'FP32', 'INT8')}\n- {sentence(colour, 'the model', 'colour')}"


def calibration(measured: dict[str, Any]) -> str:
    """Before and after the temperature, and what the operating point is worth at a prevalence."""
    found, point = measured["calibration"], measured["operating_point"]
    names = {"ece": "Calibration error (ECE)", "brier": "Brier score", "nll": "Negative log-likelihood"}
    rows = [[title, *(interval(found[when][name]) for when in ("before", "after"))] for name, title in names.items()]
    return f"""{table(["", "Before the temperature", f"After ({found['temperature']:.2f})"], rows)}

At the operating point, where {percent(point["prevalence"])} of images are malignant: positive predictive value
{interval(point["ppv"])}, negative {interval(point["npv"])}. With sensitivity and specificity both at the ends of their
Wilson intervals: {interval(point["wilson"]["ppv"])} and {interval(point["wilson"]["npv"])}."""


def prediction_sets(measured: dict[str, Any], contract: Contract) -> str:
    """Conformal sets: aim, coverage and size."""
    sets = measured["prediction_sets"]
    rows = [
        ["Holds the true class", *(interval(sets[p]["coverage"]) for p in ("fp32", "int8"))],
        *(
            [f"… where that is {c.label}", *(interval(sets[p]["per_class"][c.key]) for p in ("fp32", "int8"))]
            for c in contract.classes
        ),
        ["Classes in the set", *(interval(sets[p]["size"]) for p in ("fp32", "int8"))],
        ["Share with one class", *(interval(sets[p]["single"]) for p in ("fp32", "int8"))],
    ]
    return f"""Each answer names the classes that cannot be excluded (class-conditional conformal prediction). Made to
hold the true class in {percent(sets["fp32"]["aim"])} of each class's images, if these are like the validation images;
measured on other groups:

{table(["", "FP32", "INT8"], rows)}"""


def abstention(measured: dict[str, Any]) -> str:
    """Referrals, risk and coverage, and what is no smear of this kind."""
    both = [each | each["added_by"] for each in (measured["abstention"][name] for name in ("fp32", "int8"))]
    names = {
        "referred": "Referred to a person",
        "unlikeness": "… for unlikeness",
        "quality": "… for quality, and not for unlikeness",
        "scores": "… for the scores, and for neither",
        "false_referrals": "Referred though right",
        "risk": "Wrong, of all",
        "risk_reported": "Wrong, of those reported",
        "aurc": "Area under risk–coverage (0 is best)",
    }

    def cell(each: dict[str, Any], name: str) -> str:
        if name == "risk_reported" and each["referred"]["value"] == 1:
            return "none is reported"  # 0 ÷ 0 is 0 throughout: it would read as never wrong
        return interval(each[name])

    rows = [[title, *(cell(each, name) for each in both)] for name, title in names.items()]
    others = [
        [
            kind,
            each["images"],
            interval(each["auroc"]),
            interval(each["added_by"]["unlikeness"]),
            interval(each["referred"]),
        ]
        for kind, each in both[0]["foreign"].items()
    ]
    return f"""Referred by the server's own rules: for unlikeness, for quality, or for the scores (low confidence, or a
malignancy that is neither confirmed nor excluded).

{table(["Test split", "FP32", "INT8"], rows)}

Images that are no such smears, against the test split (FP32). AUROC: how often one is more unlike than a smear is.
{out_of_distribution.FEW}

{table(["Kind", "Images", "AUROC of unlikeness", "Referred as unlike", "Referred in all"], others)}"""


def explanations(measured: dict[str, Any]) -> str:
    """Tests of the maps, and of the similar cases. What they fail is said as plainly as what they pass."""
    found = measured["explanations"]
    h, w = found["grid"]
    parts = [
        f"""`/explain` answers with a map (Grad-CAM, {h} × {w} positions) of where the model looked. It is a view into
the model, never proof of anything about a cell. Tests on the test split, for the class that FP32 gave. Without a map,
since nothing spoke for the class: {interval(found["empty"])} of images."""
    ]
    if min(h, w) < COARSE:
        parts.append(f"{h} × {w} positions are coarse: a map tells which part of an image, not which part of a cell.")
    if "altered_images" in found:
        parts += [_altered(found), _shuffled(found["randomised"])]
    if "cell" in found:
        parts.append(_on_cells(found["cell"]))
    if "similar" in found:
        cases = found["similar"]
        parts.append(
            f"Similar cases: of the {cases['cases']} nearest training images, {interval(cases['same_class'])} have\n"
            f"the image's own class; by chance {interval(cases['chance'])}."
        )
    return "\n\n".join(parts)


def _altered(found: dict[str, Any]) -> str:
    rows = [
        [title, *(interval(found[test][name]) for name in ("map", "random", "gain")), _better(found[test]["gain"])]
        for test, title in (("deletion", "Deletion (low is good)"), ("insertion", "Insertion (high is good)"))
    ]
    head = ["Area under the probability's curve", "The map's order", "A random map's", "Gain", ""]
    return f"""Pixels are painted over, or put into a blurred copy, those first that the map marks most
({found["altered_images"]} images):

{table(head, rows)}"""


def _shuffled(left: dict[str, Any]) -> str:
    names = ("correlation", "same_highest", "empty")
    rows = [[title, *(interval(left[part][name]) for name in names)] for part, title in PARTS.items()]
    head = ["Weights", "Rank correlation with the map", "Same highest position", "Empty"]
    return f"""With its weights shuffled, what is left of a map owes nothing to what was learned in them; it should be
no more like the map than another image's is:

{table(head, rows)}"""


def _on_cells(games: dict[str, Any]) -> str:
    rows = [
        [title, *(interval(games[game][name]) for game in ("energy", "pointing"))] for name, title in BESIDE.items()
    ]
    gain = games["energy"]["above_uniform"]
    return f"""Where the cell is known, how much of the map lies in it. Cells are centred in this data, so a Gaussian in
the middle is hard to beat, and has learned nothing:

{table(["", "Energy in the cell", "Highest point in the cell"], rows)}

The map's energy in the cell, less an even map's: {interval(gain)}, {_better(gain)}."""


def _better(gain: dict[str, float]) -> str:
    if gain["low"] > 0:
        return "better than chance"
    return "worse than chance" if gain["high"] < 0 else "not to be told from chance"
