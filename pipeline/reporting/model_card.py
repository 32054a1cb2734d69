"""What a run measured, for people: the model card, never made by hand, and the table on the terminal.

The card is after Mitchell et al. 2019, "Model Cards for Model Reporting", and short enough to be read.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from leukdetect import page
from leukdetect.contract import Contract
from pipeline.evaluation import out_of_distribution, shortcuts
from pipeline.evaluation.compare import sentence
from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.report import Report
from pipeline.reporting.datasheet import SYNTHETIC, patients
from pipeline.sections import Wording

CARD = Path(__file__).with_name("model_card.md.jinja")
FEW_GROUPS = 10  # of a class; ten of ten leave Wilson's lower end at 0.72
LOWEST = 8  # slices on the card
COARSE = 5  # positions a side; with fewer a map says little more than which quarter
HEADLINE = {  # the names in reports/metrics.json, for people
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "malignant_sensitivity": "Malignant sensitivity",
    "malignant_specificity": "Malignant specificity",
    "malignant_auroc": "AUROC, malignant against benign",
    "macro_auroc": "AUROC, class against rest, mean",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
    "nll": "Negative log-likelihood",
    "coverage": "Coverage (share not referred)",
    "accuracy_reported": "Accuracy where not referred",
}
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


def render(
    report: Report,
    contract: Contract,
    wording: Wording,
    source: dict[str, Any],
    split: pd.DataFrame,
    by_slice: pd.DataFrame,
) -> str:
    """The card as Markdown: of the FP32 file's contract, data/source.json, split.csv and `slices.table`."""
    folds = report.cross_validation.by_share if report.cross_validation else {}
    return page.render(
        CARD,
        report=report,
        contract=contract,
        wording=wording,
        source=source,
        patients=patients(split),
        slices=list(by_slice.sort_values("accuracy", kind="stable").itertuples()),
        folds=sorted(((float(share), found) for share, found in folds.items()), reverse=True, key=lambda item: item[0]),
        headline=HEADLINE,
        parts=PARTS,
        beside=BESIDE,
        shortcuts=shortcuts.MEANING,
        few=out_of_distribution.FEW,
        few_groups=FEW_GROUPS,
        lowest=LOWEST,
        coarse=COARSE,
        synthetic=SYNTHETIC,
        interval=Estimate,
        sentence=sentence,
        percent=lambda share: f"{100 * share:.6g}%",  # without the noise of floats: `95%`, `0.2%`, `99.5%`
    )


def table(report: Report, resamples: int) -> str:
    """The headline metrics for a terminal, the baseline beside the model."""
    split, drop = report.split, report.int8_vs_fp32.balanced_accuracy_drop
    files = report.fp32, report.int8, report.colour_only
    lines = [
        f"{_sample(report)}: {split.test} images in {split.test_groups} groups "
        f"({split.fewest_test_groups} or more a class); 95 % intervals from {resamples:,} resamples of groups",
        "",
        _line("", "FP32", "INT8", "colour only"),
        *(
            _line(title, *(getattr(each, name, "") for each in files))
            for name, title in HEADLINE.items()
            if getattr(report.fp32, name) is not None
        ),
        "",
        "Balanced accuracy",
        _line("  above colour only", report.margin_over_colour),
        _line("  lost by INT8", "", drop),
        _line("  with the corner masked", report.audit.corner_masked.balanced_accuracy),
        _line("  with another class's corner", report.audit.corner_of_another.balanced_accuracy),
    ]
    if found := report.out_of_fold:
        for title, values in {"folds": [*chain(*found.each_fold)], "seeds": found.each_seed}.items():
            lines.append(_line(f"  of single {title}", f"{min(values):.3f} to {max(values):.3f}"))
        lines += ["", f"The model itself learnt from all {split.train} images."]
    return "\n".join([*lines, "", SYNTHETIC] if report.synthetic else lines)


def _sample(report: Report) -> str:
    if (found := report.out_of_fold) is None:
        return "Test split"
    return f"Out of fold ({found.folds} folds, seed{'s'[: len(found.seeds) > 1]} {', '.join(map(str, found.seeds))})"


def _line(title: str, *cells: object) -> str:
    return f"{title:34}{''.join(f'{cell!s:24}' for cell in cells)}".rstrip()
