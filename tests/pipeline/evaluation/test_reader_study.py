"""Reader studies and their size, against published worked examples."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from pipeline.evaluation import metrics, reader_study, sample_size
from pipeline.stage import Problem

# Fleiss's kappa: the worked example of 14 readers, 10 subjects and 5 classes that textbooks and Wikipedia's article
# on it share; 0.210. A row a subject, how many readers chose each class.
TEN_SUBJECTS = (
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
)  # fmt: skip


def study(path: Path, calls: dict[str, str], truth: str = "mmmmbbbb") -> Path:
    """Eight cases of four patients; a letter a case, m malignant and b benign."""
    names = {"m": "malignant", "b": "benign", "r": "refer"}
    rows = [
        (f"c{i}", f"p{i // 2}", names[truth[i]], reader, names[call])
        for reader, row in calls.items()
        for i, call in enumerate(row)
    ]
    pd.DataFrame(rows, columns=reader_study.COLUMNS).to_csv(path, index=False)
    return path


def test_cohens_kappa_is_that_of_fleiss_levin_and_paik() -> None:
    """Statistical Methods for Rates and Proportions, 3rd ed. 2003, table 18.1: 100 subjects, kappa 0.68."""
    table = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])
    calls = np.repeat(np.indices((3, 3)).reshape(2, 9).T, table.ravel(), axis=0)
    assert reader_study.cohen(calls, np.ones(100)) == pytest.approx(0.6765, abs=5e-5)
    repeated = reader_study.cohen(np.repeat(calls, 2, axis=0), np.ones(200))
    assert reader_study.cohen(calls, np.full(100, 2.0)) == pytest.approx(repeated)


def test_fleiss_kappa_is_that_of_the_common_example() -> None:
    calls = np.array([np.repeat(np.arange(5), row) for row in TEN_SUBJECTS])
    assert reader_study.fleiss(calls, np.ones(10)) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("kappa", [reader_study.cohen, reader_study.fleiss])
def test_readers_who_always_agree_have_kappa_1_and_of_one_class_nothing_can_be_said(kappa: object) -> None:
    assert callable(kappa)
    assert kappa(np.array([[0, 0], [1, 1], [1, 1]]), np.ones(3)) == pytest.approx(1)
    assert np.isnan(kappa(np.zeros((3, 2), int), np.ones(3)))


def test_the_report_counts_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = study(tmp_path / "calls.csv", {"model": "mmmrbbbm", "ann": "mmbbbbbb", "bob": "mmmbbbbm"})
    monkeypatch.setattr("sys.argv", ["reader_study", str(calls)])
    reader_study.main()
    printed = capsys.readouterr().out
    assert "8 cases of 4 patients, 4 of them malignant; 2 readers and model" in printed
    row = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[4:7]}
    assert (row["model"][0], row["model"][5]) == ("1.000", "0.750")  # refer is not benign
    assert (row["ann"][0], row["ann"][5]) == ("0.500", "1.000")
    assert row["model"][3:5] == ["[0.510,", "1.000]"]  # Wilson, 4 of 4
    # Both that ann missed are one patient's: a resample has them twice, once or never.
    assert (
        "ann, sensitivity: 0.500 [0.000, 1.000]. Only model is right on 2 images, only ann on 0: "
        "exact McNemar p = 0.5, images taken as independent." in printed
    )
    assert "bob, specificity: 0.000 [0.000, 0.000]. Only model is right on 0 images, only bob on 0" in printed
    assert "the 2 readers, Fleiss: 0.467" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="patient"), "has no column patient"),
        (lambda table: table.iloc[1:], "reader model has 0 calls of case c0"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "reader model has 2 calls of case c0"),
        (lambda table: table.assign(call=["", *table["call"][1:]]), "an empty cell in line 2"),
        (lambda table: table.assign(truth=["benign", *table["truth"][1:]]), "case c0 has more than one truth"),
        (lambda table: table.assign(truth="benign"), "are not of both kinds"),
        (lambda table: table.replace("model", "leuk"), "no reader is called model"),
        (lambda table: table.iloc[:0], "has no calls"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_what_is_wrong(
    tmp_path: Path, change: object, message: str
) -> None:
    path = study(tmp_path / "calls.csv", {"model": "mmmmbbbb", "ann": "mmmmbbbb"})
    assert callable(change)
    change(pd.read_csv(path, keep_default_na=False)).to_csv(path, index=False)
    with pytest.raises(Problem, match=message):
        reader_study.report(*reader_study.read(path), ["benign"], "model")


@pytest.mark.parametrize(("encoding", "separator"), [("utf-8-sig", ","), ("cp1252", ";"), ("utf-16", "\t")])
def test_a_table_as_excel_writes_it_is_read(tmp_path: Path, encoding: str, separator: str) -> None:
    path = study(tmp_path / "calls.csv", {"model": "mmmrbbbm", "Jürgen": "mmbbbbbb"})
    cases, calls = reader_study.read(path)
    table = path.read_text().replace(",", separator).replace("\n", "\r\n") + 4 * separator + "\r\n"
    path.write_bytes(table.encode(encoding))
    again, same = reader_study.read(path)
    pd.testing.assert_frame_equal(again, cases)
    pd.testing.assert_frame_equal(same, calls)


def test_the_sample_size_is_buderers() -> None:
    """Buderer 1996, Academic Emergency Medicine 3:895-900: sensitivity 0.90, specificity 0.85, ± 0.10, prevalence 0.20.

    173 patients for sensitivity, 62 for specificity; the larger is needed.
    """
    assert sample_size.sample_size(0.90, 0.85, 0.10, 0.20) == sample_size.Size(35, 49, 173)
    assert sample_size.sample_size(0.999, 0.85, 0.10, 0.20).patients == 62  # specificity alone


@pytest.mark.parametrize(("expected", "margin"), [(0.95, 0.05), (0.9, 0.05), (0.9, 0.1), (0.8, 0.1)])
def test_the_larger_size_shows_the_bound_in_four_studies_of_five_and_the_smaller_in_fewer_than_half(
    expected: float, margin: float
) -> None:
    """By the exact binomial distribution of how often Wilson's interval lies above the bound."""

    def chance(n: int) -> float:
        fewest = next(hits for hits in range(n + 1) if metrics.wilson(hits, n).low > expected - margin)
        return float(binom.sf(fewest - 1, n, expected))

    assert chance(math.ceil(sample_size.to_know(expected, margin))) < 0.5
    assert 0.77 < chance(math.ceil(sample_size.to_show(expected, margin))) < 0.86


def test_both_sizes_are_printed_as_the_document_has_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = Path("docs/clinical-evaluation.md").read_text()
    command = next(
        line for line in document.splitlines() if line.startswith("python -m pipeline.evaluation.sample_size")
    )
    monkeypatch.setattr("sys.argv", command.split()[2:])
    sample_size.main()
    printed = capsys.readouterr().out
    for count in ("73 malignant and 139 benign", "about 365", "239 malignant and 363 benign", "about 1191"):
        assert count in printed
        assert count in document


def test_further_images_of_a_patient_help_only_as_far_as_they_differ() -> None:
    alone = sample_size.sample_size(0.9, 0.9, 0.05, 0.5)
    assert sample_size.sample_size(0.9, 0.9, 0.05, 0.5, images=10, correlation=1) == alone
    assert sample_size.sample_size(0.9, 0.9, 0.05, 0.5, images=10, correlation=0).patients == 28  # 277 ÷ 10


@pytest.mark.parametrize(
    "wrong", [{"prevalence": 0}, {"sensitivity": 1.0}, {"correlation": 2}, {"images": 0}, {"margin": 0.9}]
)
def test_shares_that_cannot_be_are_refused_by_name(wrong: dict[str, Any]) -> None:
    fit: dict[str, Any] = {"sensitivity": 0.9, "specificity": 0.9, "margin": 0.05, "prevalence": 0.5}
    with pytest.raises(Problem, match=f"--{next(iter(wrong))}"):
        sample_size.sample_size(**(fit | wrong))
