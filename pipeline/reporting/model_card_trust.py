"""The model card's sections on whether to believe it: calibration, prediction sets, abstention, explanations."""

from leukdetect.contract import Contract
from pipeline.evaluation import out_of_distribution
from pipeline.evaluation.abstention import Abstention
from pipeline.evaluation.compare import sentence
from pipeline.evaluation.explanations import Altered, OnCells
from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.randomisation import Alike
from pipeline.evaluation.report import Report
from pipeline.reporting.markdown import percent, table

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


def comparisons(measured: Report) -> str:
    """McNemar's tests, in words."""
    int8 = sentence(measured.int8_vs_fp32.mcnemar, "FP32", "INT8")
    return f"{int8}\n- {sentence(measured.mcnemar_over_colour, 'the model', 'colour')}"


def calibration(measured: Report) -> str:
    """Before and after the temperature, and what the operating point is worth at a prevalence."""
    found, point = measured.calibration, measured.operating_point
    names = {"ece": "Calibration error (ECE)", "brier": "Brier score", "nll": "Negative log-likelihood"}
    rows = [[title, *(getattr(each, name) for each in (found.before, found.after))] for name, title in names.items()]
    return f"""{table(["", "Before the temperature", f"After ({found.temperature:.2f})"], rows)}

At the operating point, where {percent(point.prevalence)} of images are malignant: positive predictive value
{point.ppv}, negative {point.npv}. With sensitivity and specificity both at the ends of their
Wilson intervals: {point.wilson.ppv} and {point.wilson.npv}."""


def prediction_sets(measured: Report, contract: Contract) -> str:
    """Conformal sets: aim, coverage and size."""
    both = [measured.prediction_sets.fp32, measured.prediction_sets.int8]
    rows = [
        ["Holds the true class", *(each.coverage for each in both)],
        *([f"… where that is {c.label}", *(each.per_class[c.key] for each in both)] for c in contract.classes),
        ["Classes in the set", *(each.size for each in both)],
        ["Share with one class", *(each.single for each in both)],
    ]
    return f"""Each answer names the classes that cannot be excluded (class-conditional conformal prediction). Made to
hold the true class in {percent(both[0].aim)} of each class's images, if these are like the validation images;
measured on other groups:

{table(["", "FP32", "INT8"], rows)}"""


def abstention(measured: Report) -> str:
    """Referrals, risk and coverage, and what is no smear of this kind."""
    both = [measured.abstention.fp32, measured.abstention.int8]
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

    def cell(each: Abstention, name: str) -> str:
        if name == "risk_reported" and each.referred.value == 1:
            return "none is reported"  # 0 ÷ 0 is 0 throughout: it would read as never wrong
        return str(getattr(each, name, "") or getattr(each.added_by, name))

    rows = [[title, *(cell(each, name) for each in both)] for name, title in names.items()]
    others = [
        [
            kind,
            each.images,
            each.auroc,
            each.added_by.unlikeness,
            each.referred,
        ]
        for kind, each in both[0].foreign.items()
    ]
    return f"""Referred by the server's own rules: for unlikeness, for quality, or for the scores (low confidence, or a
malignancy that is neither confirmed nor excluded).

{table(["Test split", "FP32", "INT8"], rows)}

Images that are no such smears, against the test split (FP32). AUROC: how often one is more unlike than a smear is.
{out_of_distribution.FEW}

{table(["Kind", "Images", "AUROC of unlikeness", "Referred as unlike", "Referred in all"], others)}"""


def explanations(measured: Report) -> str:
    """Tests of the maps, and of the similar cases. What they fail is said as plainly as what they pass."""
    found = measured.explanations
    h, w = found.grid
    parts = [
        f"""`/explain` answers with a map (Grad-CAM, {h} × {w} positions) of where the model looked. It is a view into
the model, never proof of anything about a cell. Tests on the test split, for the class that FP32 gave. Without a map,
since nothing spoke for the class: {found.empty} of images."""
    ]
    if min(h, w) < COARSE:
        parts.append(f"{h} × {w} positions are coarse: a map tells which part of an image, not which part of a cell.")
    if found.deletion and found.insertion:
        parts.append(_altered(found.deletion, found.insertion, found.altered_images))
    if found.randomised:
        parts.append(_shuffled(found.randomised))
    if found.cell:
        parts.append(_on_cells(found.cell))
    if cases := found.similar:
        parts.append(
            f"Similar cases: of the {cases.cases} nearest training images, {cases.same_class} have\n"
            f"the image's own class; by chance {cases.chance}."
        )
    return "\n\n".join(parts)


def _altered(deletion: Altered, insertion: Altered, images: int | None) -> str:
    rows = [
        [title, each.map, each.random, each.gain, _better(each.gain)]
        for each, title in ((deletion, "Deletion (low is good)"), (insertion, "Insertion (high is good)"))
    ]
    head = ["Area under the probability's curve", "The map's order", "A random map's", "Gain", ""]
    return f"""Pixels are painted over, or put into a blurred copy, those first that the map marks most
({images} images):

{table(head, rows)}"""


def _shuffled(left: dict[str, Alike]) -> str:
    rows = [[title, *(each for _, each in left[part])] for part, title in PARTS.items()]
    head = ["Weights", "Rank correlation with the map", "Same highest position", "Empty"]
    return f"""With its weights shuffled, what is left of a map owes nothing to what was learned in them; it should be
no more like the map than another image's is:

{table(head, rows)}"""


def _on_cells(games: OnCells) -> str:
    rows = [
        [title, *(getattr(game, name) for game in (games.energy, games.pointing))] for name, title in BESIDE.items()
    ]
    gain = games.energy.above_uniform
    return f"""Where the cell is known, how much of the map lies in it. Cells are centred in this data, so a Gaussian in
the middle is hard to beat, and has learned nothing:

{table(["", "Energy in the cell", "Highest point in the cell"], rows)}

The map's energy in the cell, less an even map's: {gain}, {_better(gain)}."""


def _better(gain: Estimate) -> str:
    if gain.low > 0:
        return "better than chance"
    return "worse than chance" if gain.high < 0 else "not to be told from chance"
