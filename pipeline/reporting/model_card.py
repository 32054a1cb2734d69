"""What a run measured, for people: the model card, never made by hand, and the table on the terminal.

The card is after Mitchell et al. 2019, "Model Cards for Model Reporting", and short enough to be read.
"""

from typing import Any

import pandas as pd

from leukdetect.contract import Contract
from pipeline.evaluation import shortcuts
from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.report import Report
from pipeline.reporting import markdown, model_card_trust
from pipeline.reporting.markdown import SYNTHETIC

LOWEST = 8  # slices on the card
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


def render(
    measured: Report, contract: Contract, source: dict[str, Any], split: pd.DataFrame, by_slice: pd.DataFrame
) -> str:
    """Writes the card as Markdown.

    Args:
        measured: what reports/metrics.json will hold.
        contract: of the FP32 file.
        source: what data/source.json holds.
        split: what data/prepared/split.csv holds.
        by_slice: from `slices.table`.
    """
    patients = split.loc[split["patient"] != "", "patient"].nunique()
    sections = {
        "Use": _use(contract),
        "Model": _model(contract),
        "Data": _data(measured, source, patients),
        "Results": _results(measured, contract),
        "Calibration": model_card_trust.calibration(measured),
        "Classes that cannot be excluded": model_card_trust.prediction_sets(measured, contract),
        "When it declines to answer": model_card_trust.abstention(measured),
        "Where the model looked": model_card_trust.explanations(measured),
        "Shortcut audit": _audit(measured),
        "Slices": _slices(by_slice),
        "Thresholds": _thresholds(contract),
        "Limits": _limits(measured, contract, patients),
    }
    stamp = f"**{SYNTHETIC}. The images are rendered; there is no patient.**\n\n" if measured.synthetic else ""
    head = f"# Model card: {contract.name}\n\n{stamp}> {contract.disclaimer}\n"
    return "\n".join([head, *(f"## {title}\n\n{text}\n" for title, text in sections.items())])


def table(measured: Report, resamples: int) -> str:
    """The headline metrics for a terminal, the baseline beside the model."""
    split = measured.split
    lines = [
        f"Test split: {split.test} images in {split.test_groups} groups "
        f"({split.fewest_test_groups} or more a class); 95 % intervals from {resamples:,} resamples of groups",
        "",
        _line("", "FP32", "INT8", "colour only"),
    ]
    for name, title in HEADLINE.items():
        lines.append(_line(title, *_cells(measured, name)))
    lines += [
        "",
        "Balanced accuracy",
        _line("  above colour only", measured.margin_over_colour),
        _line("  lost by INT8", "", measured.int8_vs_fp32.balanced_accuracy_drop),
        _line("  with the corner masked", measured.audit.corner_masked.balanced_accuracy),
    ]
    return "\n".join([*lines, "", SYNTHETIC] if measured.synthetic else lines)


def _use(contract: Contract) -> str:
    return f"""**Intended:** {contract.intended_use}

**Not for:** a diagnosis that no haematologist has made; a subtype without flow cytometry; other stains, cameras,
magnifications or diseases than those of the data below.

**Must not be used by:** patients, for themselves; anybody without a haematologist who reviews every answer; a program
that acts on an answer before a person has seen it."""


def _model(contract: Contract) -> str:
    source, size = contract.provenance, contract.decode.size
    return f"""- Takes RGB images of {size} × {size} pixels; gives calibrated probabilities of
  {", ".join(c.label for c in contract.classes)}.
- Made {source.created}, of commit `{source.git_commit[:12]}`, recipe `{source.params_sha256[:12]}` and prepared data
  `{source.data_sha256[:12]}`; MLflow run `{source.mlflow_run}`."""


def _data(measured: Report, source: dict[str, Any], patients: int) -> str:
    split = measured.split
    images = ", ".join(f"{n} {key}" for key, n in source["images"].items())
    patient = "virtual patient" if measured.synthetic else "patient"
    unit = f"{patient}; there are {patients}" if patients else "block of neighbouring file numbers"
    return f"""- Origin: {source["origin"]}. Licence: {source["licence"]}. SHA-256: `{source["sha256"][:12]}`.
- Images fetched: {images}.
- Split: {split.train} train, {split.val} validation, {split.test} test, {split.embargo} dropped between
  them (embargo). No group crosses a split; a group is a {unit}."""


def _results(measured: Report, contract: Contract) -> str:
    split, int8, wilson = measured.split, measured.int8_vs_fp32, measured.fp32.wilson
    rows = [[title, *_cells(measured, name)] for name, title in HEADLINE.items()]
    per_class = [
        [
            c.label,
            *(each for _, each in measured.fp32.per_class[c.key]),
            wilson[f"recall_{c.key}"],
        ]
        for c in contract.classes
    ]
    names = {
        "balanced_accuracy": "balanced accuracy",
        "malignant_sensitivity": "sensitivity",
        "malignant_specificity": "specificity",
    }
    sizes = f"{split.test} images in {split.test_groups} groups, {split.fewest_test_groups} or more a class"
    return f"""Test split: {sizes}.
Measured on the files that are served. In brackets: 95 % intervals, bootstrap over groups within each class.

{markdown.table(["", "FP32", "INT8", "Colour only"], rows)}

{markdown.table(["FP32, by class", "Precision", "Recall", "F1", "Recall, Wilson"], per_class)}

- Margin of balanced accuracy over colour only: {measured.margin_over_colour}. Colour only is a random
  forest on the mean and SD of red, green and blue; it sees no cell.
- Balanced accuracy lost by INT8: {int8.balanced_accuracy_drop}. Its class is FP32's in
  {int8.equal_argmax.value:.1%} of images.
- {model_card_trust.comparisons(measured)}
{_folds(measured)}

Wilson's intervals take images as independent, and have a width where the bootstrap has none; believe the wider:
{", ".join(f"{title} {wilson[name]}" for name, title in names.items())}."""


def _folds(measured: Report) -> str:
    """How good the recipe is where each group is held out once, if that was measured; the largest share first."""
    folds = measured.cross_validation
    if folds is None:
        return "- All of this is of one split: no grouped folds were trained (`python -m pipeline.cross_validate`)."
    return "\n".join(
        f"- The recipe trained anew on each of {folds.folds} grouped folds, about {found.trained_on:.0f} images "
        f"({float(share):.0%} of the training groups):\n  balanced accuracy {found.balanced_accuracy} on "
        f"{found.images} images in {found.groups} groups, each held out once; single folds "
        + ", ".join(f"{value:.3f}" for value in found.each_fold)
        + "."
        for share, found in sorted(folds.by_share.items(), key=lambda item: -float(item[0]))
    )


def _cells(measured: Report, name: str) -> list[str]:
    """A number of FP32, of INT8 and, where it has one, of the colour-only baseline."""
    return [str(getattr(each, name, "")) for each in (measured.fp32, measured.int8, measured.colour_only)]


def _audit(measured: Report) -> str:
    rows = []
    for name, (title, meaning) in shortcuts.MEANING.items():
        found = measured.colour_only if name == "colour_only" else getattr(measured.audit, name)
        rows.append([title, found.balanced_accuracy, meaning])
    return f"""The model is asked again about test images that were changed. Balanced accuracy as they are:
{measured.fp32.balanced_accuracy}.

{markdown.table(["Images", "Balanced accuracy", "What it means"], rows)}"""


def _slices(by_slice: pd.DataFrame) -> str:
    rows = [
        [
            f"{row.slice} {row.part}",
            row.images,
            row.groups,
            Estimate(row.accuracy, row.low, row.high),
        ]
        for row in by_slice.sort_values("accuracy", kind="stable").head(LOWEST).itertuples()
    ]
    return f"""Where accuracy is lowest, of {len(by_slice)} parts of the test split. Parts differ in their classes, and
the lowest of many is low by chance too: a reason to look, no proof.

{markdown.table(["Part", "Images", "Groups", "Accuracy, wider interval"], rows)}"""


def _thresholds(contract: Contract) -> str:
    limits = contract.thresholds
    return f"""Chosen on the validation split, for a malignant sensitivity of {contract.target_sensitivity:g}.

- Malignant: P(malignant) at least {limits.malignant:.3f}.
- Referred to a person: confidence below {limits.confidence:.3f}; unlikeness above 1; brightness outside
  {limits.brightness[0]:.0f} to {limits.brightness[1]:.0f}; sharpness below {limits.min_sharpness:.1f}; stain below
  {limits.min_stain:.2f} (no stained nucleus); or the highest class and the operating point disagree on malignancy."""


def _limits(measured: Report, contract: Contract, patients: int) -> str:
    return f"""- {_patients(patients, measured.synthetic)}
- One source: another laboratory's stain, camera or patients may give other results.
- The subtypes are defined by immunophenotype, which cannot be seen: an answer is "resembles", never "is".
- A group is drawn whole; with few groups a class, the intervals are too narrow.
- It knows only these classes: {", ".join(c.label for c in contract.classes)}.
  Any other cell gets one of them, or is referred."""


def _line(title: str, fp32: Any = "", int8: Any = "", colour: Any = "") -> str:
    return f"{title:34}{fp32!s:24}{int8!s:24}{colour}".rstrip()


def _patients(patients: int, synthetic: bool) -> str:
    if synthetic:
        return "No patients: nothing here says how it does on a real smear."
    if patients:
        return f"Few patients: {patients}."
    return "The patients are not known, and few: images of one may lie on both sides of the split."
