"""`python -m pipeline.evaluate` on a small project: real model files, real prepared images."""

import base64
import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import sklearn.metrics
import yaml
from PIL import Image

from pipeline import evaluate, params
from pipeline.data import prepared
from pipeline.evaluation import learning_curve, shortcuts
from pipeline.evaluation.report import SCHEMA_FILE
from pipeline.reporting import html_page
from pipeline.stage import Problem
from tests import measured, tiny_model
from tests.project import ROOT

KEYS = [c.key for c in tiny_model.CLASSES]
RECIPE = ROOT / "params.yaml"
# What the tiny model takes each class for; noise makes it err now and then.
COLOURS = {"benign": (150, 110, 110), "early": (110, 150, 110), "pre": (110, 110, 150), "pro": (75, 75, 75)}


def make_project(root: Path, *, noise: float = 22, patients: int = 5) -> None:
    """Params, two model files, prepared images of 32 px, a split by patient, curves and the data's origin."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["evaluate"]["bootstrap"] = 200
    (root / "params.yaml").write_text(yaml.safe_dump(recipe))
    tiny_model.write(root / "models/leukdetect.onnx", bias=26.0)
    tiny_model.write(root / "models/leukdetect.int8.onnx", precision="int8", bias=28.0)

    rng = np.random.default_rng(3)
    rows, pixels = [], []
    for label, key in enumerate(KEYS):
        for start, split in ((1, "train"), (101, "val"), (201, "test")):
            for patient in range(patients):
                for image in range(3):
                    name = f"{key}-p{start + patient:03d}"
                    sha256 = hashlib.sha256(f"{name}{image}".encode()).hexdigest()
                    rows.append((f"{key}/{name}-s1-{image + 1:04d}.jpg", key, label, sha256, name, name, split))
                    tint = rng.normal(COLOURS[key], noise)
                    pixels.append(np.clip(rng.normal(tint, 12, (tiny_model.SIZE, tiny_model.SIZE, 3)), 0, 255))
    pixels[-1][:] = 0  # black: unlike anything
    (root / "data/prepared").mkdir(parents=True)
    np.save(root / "data/prepared/images.npy", np.array(pixels).astype(np.uint8))
    columns = ["path", "class", "label", "sha256", "patient", "group", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "data/prepared/split.csv", index=False)

    source = {
        "source": "demo",
        "origin": "Rendered for a test",
        "licence": "MIT",
        "synthetic": True,
        "version": None,
        "archive_sha256": None,
        "images": dict.fromkeys(KEYS, 9 * patients),
        "sha256": "ab" * 32,
    }
    (root / "data/source.json").write_text(json.dumps(source))
    (root / "reports/history").mkdir(parents=True)
    for phase, epochs in (("train_head", 3), ("fine_tune", 2)):
        names = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
        curves = {name: np.linspace(1, 0.5, epochs) for name in names}
        pd.DataFrame({"epoch": range(1, epochs + 1), **curves}).to_csv(
            root / f"reports/history/{phase}.csv", index=False
        )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose model files have been evaluated."""
    root = tmp_path_factory.mktemp("project")
    make_project(root)
    with contextlib.chdir(root):
        evaluate.main()
    return root


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project that is the current folder; nothing that fails in it leaves a report."""
    make_project(tmp_path, patients=2)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["history"]


@pytest.fixture(scope="module")
def report(done: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((done / "reports/metrics.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def test_split(done: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of the test split, and the probabilities that plain onnxruntime gives for them."""
    split = pd.read_csv(done / "data/prepared/split.csv").query("split == 'test'")
    session = onnxruntime.InferenceSession(done / "models/leukdetect.onnx")
    pixels = np.load(done / "data/prepared/images.npy")[split.index]
    return split, session.run(["probabilities"], {"image": pixels})[0]


class TestMetricsJson:
    def test_it_measures_the_onnx_file_on_the_test_split(
        self, report: dict[str, Any], test_split: tuple[pd.DataFrame, np.ndarray]
    ) -> None:
        split, probabilities = test_split
        predicted, labels = probabilities.argmax(1), split["label"].to_numpy()
        p_malignant, fp32 = probabilities[:, 1:].sum(1), report["fp32"]
        recall = sklearn.metrics.recall_score(labels, predicted, average=None)
        assert 0.6 < fp32["accuracy"]["value"] < 1  # the fixture errs, or this would show little
        expected = {
            "accuracy": (predicted == labels).mean(),
            "balanced_accuracy": recall.mean(),
            "malignant_sensitivity": (p_malignant >= 0.4)[labels > 0].mean(),
            "malignant_specificity": (p_malignant < 0.4)[labels == 0].mean(),
            "malignant_auroc": sklearn.metrics.roc_auc_score(labels > 0, p_malignant),
            "coverage": 1 - report["abstention"]["fp32"]["referred"]["value"],
            "accuracy_reported": 1 - report["abstention"]["fp32"]["risk_reported"]["value"],
        }
        assert {name: fp32[name]["value"] for name in expected} == pytest.approx(expected, abs=2e-6)
        by_class = {key: fp32["per_class"][key]["recall"]["value"] for key in KEYS}
        assert by_class == pytest.approx(dict(zip(KEYS, recall, strict=True)), abs=1e-6)

    def test_every_number_that_the_gate_reads_is_there(self, report: dict[str, Any]) -> None:
        for path in (
            "fp32.balanced_accuracy",
            *(f"fp32.per_class.{key}.recall" for key in KEYS),
            "fp32.malignant_sensitivity",
            "fp32.ece",
            "margin_over_colour",
            "audit.cells_masked.balanced_accuracy",
            "audit.corner_of_another.drop",
            "int8_vs_fp32.balanced_accuracy_drop",
        ):
            estimate: Any = report
            for key in path.split("."):
                estimate = estimate[key]
            assert set(estimate) == {"value", "low", "high"}, path
            assert estimate["low"] <= estimate["value"] <= estimate["high"], path

    def test_differences_are_those_of_the_values_they_compare(self, report: dict[str, Any]) -> None:
        def balanced(part: str) -> float:
            return float(report[part]["balanced_accuracy"]["value"])

        assert report["margin_over_colour"]["value"] == pytest.approx(
            balanced("fp32") - balanced("colour_only"), abs=2e-6
        )
        drop = report["int8_vs_fp32"]["balanced_accuracy_drop"]["value"]
        assert drop == pytest.approx(balanced("fp32") - balanced("int8"), abs=2e-6)
        assert drop != 0
        for name in ("corner_of_another", "grey", "cells_masked"):
            each = report["audit"][name]
            lost = balanced("fp32") - each["balanced_accuracy"]["value"]
            assert each["drop"]["value"] == pytest.approx(lost, abs=2e-6), name
        assert report["int8_vs_fp32"]["equal_argmax"]["value"] < 1
        assert 0 < report["int8_vs_fp32"]["mean_difference"] < report["int8_vs_fp32"]["max_difference"] <= 1

    def test_it_keeps_the_published_schema(self, done: Path) -> None:
        program = Path(sys.executable).with_name("check-jsonschema")
        command: list[str | Path] = [program, "--schemafile", SCHEMA_FILE, done / "reports/metrics.json"]
        checked = subprocess.run(command, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout

    def test_the_maps_are_tested_where_the_cells_are_known(self, report: dict[str, Any]) -> None:
        found = report["explanations"]
        assert found["grid"] == [4, 4]
        assert 0 < found["empty"]["value"] < 1  # the tiny model has no map for pro
        assert set(found["cell"]) == {"energy", "pointing"}
        assert {"deletion", "insertion"} <= set(found)

    def test_it_counts_images_and_groups(self, report: dict[str, Any]) -> None:
        assert report["synthetic"] is True
        counts = {"train": 60, "val": 60, "test": 60, "embargo": 0, "test_groups": 20, "fewest_test_groups": 5}
        assert report["split"] == counts


class TestFiles:
    def test_a_second_run_writes_the_same_bytes(self, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files = [path for path in sorted((done / "reports").rglob("*")) if path.is_file()]
        before = {path: path.read_bytes() for path in files}
        with contextlib.chdir(done):
            evaluate.main()
        assert {path.relative_to(done).as_posix() for path in files} == {
            "reports/history/fine_tune.csv",
            "reports/history/train_head.csv",
            "reports/headline.json",
            "reports/metrics.json",
            "reports/datasheet.html",
            "reports/datasheet.md",
            "reports/model_card.md",
            "reports/report.html",
            "reports/predictions.csv",
            *(f"reports/plots/{name}.csv" for name in ("confusion", "history", "reliability", "roc", "slices")),
            *(
                f"reports/figures/{name}.{kind}"
                for name in (
                    "abstention",
                    "calibration",
                    "confusion_matrix",
                    "explanations",
                    "reliability",
                    "roc",
                    "training_curves",
                )
                for kind in ("png", "svg")
            ),
            *(f"reports/figures/{pictures}.png" for pictures in ("mistakes", "overlays")),
        }
        assert {path: path.read_bytes() for path in files} == before
        printed = capsys.readouterr().out
        assert "colour only" in printed
        assert "SYNTHETIC DEMO: no clinical meaning" in printed

    @pytest.mark.usefixtures("coarse_figures")
    def test_grouped_folds_are_shown_where_they_are_of_this_recipe_and_these_images(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_project(tmp_path, patients=2)
        monkeypatch.chdir(tmp_path)
        evaluate.main()
        assert "no grouped folds were trained" in Path("reports/model_card.md").read_text()
        recipe = params.load()
        point = measured.example(learning_curve.Point) | {
            **{"images": 24, "groups": 8, "trained_on": 12.0, "each_fold": [0.4, 0.6]},
            "balanced_accuracy": {"value": 0.5, "low": 0.4, "high": 0.6},
            "recall_benign": {"value": 0.5, "low": 0.4, "high": 0.6},
        }
        folds = {"key": learning_curve.key(recipe, prepared.digest()), "folds": 2, "by_share": {"1": point}}
        Path("reports/cross_validation.json").write_text(json.dumps(folds))
        evaluate.main()
        assert json.loads(Path("reports/metrics.json").read_text())["cross_validation"] == folds
        drawn = base64.b64encode(Path("reports/figures/learning_curve.svg").read_bytes()).decode()
        assert drawn in Path("reports/report.html").read_text()
        card = Path("reports/model_card.md").read_text()
        assert "2 grouped folds, about 12 images (100% of the training groups)" in card
        assert "balanced accuracy 0.500 [0.400, 0.600] on 24 images in 8 groups, each held out once" in card
        assert "single folds 0.400, 0.600." in card
        assert learning_curve.read(learning_curve.key(recipe, "other images")) is None

    def test_predictions_are_the_test_split_and_say_why_an_image_is_referred(
        self, done: Path, test_split: tuple[pd.DataFrame, np.ndarray]
    ) -> None:
        table = pd.read_csv(done / "reports/predictions.csv")
        split, probabilities = test_split
        assert table["image"].tolist() == split["sha256"].str[:12].tolist()
        np.testing.assert_allclose(table[[f"probability_{key}" for key in KEYS]], probabilities, atol=1e-6)
        assert table["predicted"].tolist() == [KEYS[i] for i in probabilities.argmax(1)]
        reasons = table["reasons"].fillna("").str.split()
        expected = {
            "low_confidence": table["confidence"] < 0.5,
            "unlike_training_images": table["unlikeness"] > 1,
            "malignant_not_excluded": table["malignant"] & (table["predicted"] == "benign"),
        }
        for code, flags in expected.items():
            assert (reasons.map(lambda each, code=code: code in each) == flags).all()
            assert flags.any()
        assert ((table["decision"] == "refer") == (reasons.str.len() > 0)).all()
        assert (table["malignant"] == (table["p_malignant"] >= 0.4)).all()

    def test_plots_fit_dvc_and_history_runs_through_both_phases(self, done: Path) -> None:
        confusion = pd.read_csv(done / "reports/plots/confusion.csv")
        assert list(confusion) == ["actual", "predicted"]
        assert set(confusion["actual"]) == set(KEYS)
        history = pd.read_csv(done / "reports/plots/history.csv")
        assert history["step"].tolist() == [1, 2, 3, 4, 5]
        assert history["epoch"].tolist() == [1, 2, 3, 1, 2]
        assert history["phase"].tolist() == ["train_head"] * 3 + ["fine_tune"] * 2
        reliability = pd.read_csv(done / "reports/plots/reliability.csv")
        assert reliability["images"].sum() == 60
        roc = pd.read_csv(done / "reports/plots/roc.csv")
        assert roc.iloc[0].tolist() == [0, 0]
        assert roc.iloc[-1].tolist() == [1, 1]

    def test_figures_are_real_images_that_name_no_date_or_software(self, done: Path) -> None:
        figures = list((done / "reports/figures").iterdir())
        assert not any("<dc:date>" in path.read_text() for path in figures if path.suffix == ".svg")
        for path in (path for path in figures if path.suffix == ".png"):
            with Image.open(path) as image:
                assert min(image.size) > 300
                assert set(image.info) == {"dpi"}

    def test_the_model_card_holds_the_result_the_baseline_and_the_warning(
        self, done: Path, report: dict[str, Any]
    ) -> None:
        card = (done / "reports/model_card.md").read_text()
        for estimate in (report["fp32"]["balanced_accuracy"], report["colour_only"]["balanced_accuracy"]):
            assert f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" in card
        for text in (
            "SYNTHETIC DEMO",
            "Not a medical device",
            "Licence: MIT",
            "a group is a virtual patient; there are 60",
            "flow cytometry",
            "Must not be used by:** patients",
            f"of commit `{'0' * 12}`",
            "0.00 (no stained nucleus)",
        ):
            assert text in card

    def test_the_card_holds_every_section_filled(self, done: Path) -> None:
        card = (done / "reports/model_card.md").read_text()
        sections = dict(part.split("\n", 1) for part in card.split("\n## ")[1:])
        assert list(sections) == [
            "Use",
            "Model",
            "Data",
            "Results",
            "Calibration",
            "Classes that cannot be excluded",
            "When it declines to answer",
            "Where the model looked",
            "Shortcut audit",
            "Slices",
            "Thresholds",
            "Limits",
        ]
        assert all(len(text.strip()) > 100 for text in sections.values())
        assert "None" not in card
        assert "nan" not in card.split()

    def test_the_card_holds_what_makes_answers_trustworthy_or_not(self, done: Path, report: dict[str, Any]) -> None:
        card = (done / "reports/model_card.md").read_text()
        for estimate in (
            report["calibration"]["before"]["ece"],
            report["prediction_sets"]["fp32"]["per_class"]["pro"],
            report["abstention"]["int8"]["false_referrals"],
            report["abstention"]["fp32"]["aurc"],
            report["explanations"]["empty"],
            report["explanations"]["cell"]["energy"]["centre"],
            report["explanations"]["randomised"]["head"]["correlation"],
            report["explanations"]["insertion"]["gain"],
        ):
            assert f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" in card
        for kind in report["abstention"]["fp32"]["foreign"]:
            assert f"| {kind} | " in card
        assert "never proof" in card
        assert "hold the true class in 95% of each class's images" in card
        assert f"exact McNemar p = {report['int8_vs_fp32']['mcnemar']['p']:.3g}, images taken as independent." in card
        assert "Photographs are crops of three pictures" in card

    def test_the_card_holds_the_audit_the_slices_and_wilsons_intervals(
        self, done: Path, report: dict[str, Any]
    ) -> None:
        card = (done / "reports/model_card.md").read_text()
        for title, meaning in shortcuts.MEANING.values():
            assert f"| {title} | " in card
            assert meaning in card
        cells_masked = report["audit"]["cells_masked"]["balanced_accuracy"]
        assert f"| Cells painted over | {cells_masked['value']:.3f} [" in card
        lowest = pd.read_csv(done / "reports/plots/slices.csv")["accuracy"].min()
        assert f"| {lowest:.3f} [" in card.split("## Slices")[1]
        wilson = report["fp32"]["wilson"]
        for estimate in (
            wilson["balanced_accuracy"],
            wilson["malignant_sensitivity"],
            wilson["recall_pre"],
            report["operating_point"]["wilson"]["npv"],
        ):
            assert f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" in card

    def test_the_datasheet_counts_images_and_groups(self, done: Path) -> None:
        sheet = (done / "reports/datasheet.md").read_text()
        assert "| benign | 15 (5) | 15 (5) | 15 (5) |" in sheet
        assert "SYNTHETIC DEMO" in sheet
        assert "Licence: MIT" in sheet
        assert "every image is rendered" in sheet
        assert [line for line in sheet.splitlines() if line.startswith("## ")] == [
            "## Where it is from",
            "## What it holds",
            "## What was done to it",
            "## What it may be used for",
            "## What to beware of",
        ]

    def test_the_page_holds_both_and_loads_nothing_from_elsewhere(self, done: Path) -> None:
        page = (done / "reports/report.html").read_text()
        for text in ("Not a medical device", "Shortcut audit", "Datasheet of the data", 'name="viewport"'):
            assert text in page
        assert page.count('src="data:image/svg+xml;base64,') == page.count("<img ") >= 3
        assert not re.search(r"<script|<link|https?:|url\(|@import", page)
        for name in ("mistakes", "overlays"):  # they show images
            assert base64.b64encode((done / f"reports/figures/{name}.png").read_bytes()).decode() not in page

    def test_images_are_on_the_page_only_where_the_licence_lets_them_travel(self, done: Path) -> None:
        overlays = base64.b64encode((done / "reports/figures/overlays.png").read_bytes()).decode()
        figures = done / "reports/figures"
        assert overlays in html_page.render("# card", "# sheet", figures, pictures=True)
        assert overlays not in html_page.render("# card", "# sheet", figures)

    def test_the_datasheet_has_a_page_of_its_own(self, done: Path) -> None:
        page = (done / "reports/datasheet.html").read_text()
        assert "<title>Datasheet of the data</title>" in page
        assert "<td>benign</td>" in page
        assert not re.search(r"<script|<link|https?:|url\(|@import", page)

    def test_what_data_says_of_itself_never_becomes_html(self, tmp_path: Path) -> None:
        page = html_page.render("# <script>alert(1)</script>", "![x](javascript:alert) <img src=x>", tmp_path)
        assert "<script" not in page
        assert "<img" not in page


class TestProblems:
    @pytest.mark.parametrize(
        ("missing", "target"),
        [
            ("models/leukdetect.onnx", "export"),
            ("models/leukdetect.int8.onnx", "export"),
            ("data/prepared/split.csv", "prepare"),
            ("data/source.json", "fetch"),
        ],
    )
    def test_a_missing_input_names_the_stage_that_makes_it(self, project: Path, missing: str, target: str) -> None:
        (project / missing).unlink()
        with pytest.raises(Problem, match=f"dvc repro {target}"):
            evaluate.main()

    def test_missing_curves_name_the_phase(self, project: Path) -> None:
        curves = project / "reports/history/fine_tune.csv"
        curves.unlink()
        with pytest.raises(Problem, match=r"fine_tune.csv is missing; `dvc repro fine_tune`"):
            evaluate.main()

    def test_a_class_without_test_images_is_named(self, project: Path) -> None:
        path = project / "data/prepared/split.csv"
        split = pd.read_csv(path)
        split.loc[(split["class"] == "pre") & (split["split"] == "test"), "split"] = "embargo"
        split.to_csv(path, index=False)
        with pytest.raises(Problem, match="the test split has no image of pre"):
            evaluate.main()

    def test_a_model_of_other_classes_is_refused(self, project: Path) -> None:
        recipe = yaml.safe_load(RECIPE.read_text())
        recipe["classes"].reverse()
        (project / "params.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(Problem, match=r"knows the classes .*, but params.yaml has"):
            evaluate.main()

    def test_images_of_another_size_are_refused(self, project: Path) -> None:
        images = np.load(project / "data/prepared/images.npy")
        np.save(project / "data/prepared/images.npy", images[:, :16, :16])
        with pytest.raises(Problem, match=r"holds images of 16 px, but models/leukdetect.onnx takes 32 px"):
            evaluate.main()
