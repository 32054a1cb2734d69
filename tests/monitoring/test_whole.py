"""What all images of a folder show together."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukdetect.contract import Reference
from monitoring import report, whole
from pipeline.data import manifest
from tests import tiny_model

LABELS = [each.label for each in tiny_model.CLASSES]


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    """200 validation images of 20 patients, each class a quarter, of files of 200 to 300 pixels a side."""
    made = tiny_model.write(tmp_path / "m.onnx").reference
    return made.model_copy(update={"sides": np.linspace(200, 300, 21).tolist()})


@pytest.mark.parametrize("subtype", range(4))
@pytest.mark.parametrize("groups", [0, 6])
def test_sixty_images_of_one_subtype_are_found_though_some_are_taken_for_others(
    subtype: int, groups: int, reference: Reference
) -> None:
    predicted = np.full(60, subtype)
    predicted[:8] = np.arange(8) % 4
    said = whole.mix(predicted, groups, reference, LABELS)
    assert f"of the 60 images are called {LABELS[subtype]}; of the validation images 25% were" in said
    assert ("Among 6 patients" if groups else "Among about 6 patients") in said


def test_a_usual_mix_and_a_single_patient_are_not_told_of(reference: Reference) -> None:
    assert whole.mix(np.arange(60) % 4, 0, reference, LABELS) == ""
    assert whole.mix(np.zeros(60, int), 1, reference, LABELS) == ""  # a patient has one class: that says nothing
    assert whole.mix(np.zeros(10, int), 0, reference, LABELS) == ""


def test_of_folders_of_random_patients_one_in_twenty_is_told_of_at_most(reference: Reference) -> None:
    rng = np.random.default_rng(0)
    for patients in (5, 6, 10, 30):
        told = [
            whole.mix(np.repeat(rng.integers(0, 4, patients), 10), patients, reference, LABELS) != ""
            for _ in range(1000)
        ]
        assert np.mean(told) <= 0.05


@pytest.mark.parametrize(
    ("times", "told"), [(1.0, False), (1.3, False), (0.8, False), (2.0, True), (3.0, True), (0.4, True)]
)
def test_pictures_of_four_to_nine_times_the_size_are_found(times: float, told: bool, reference: Reference) -> None:
    said = whole.sizes(np.full(60, 250 * times), reference)
    assert (said != "") is told
    if told:
        assert "60 of the 60 pictures have other sizes than the validation images, whose sides are 200 to 300" in said
        assert f"{times:.2g} times the side, {times**2:.2g} times the area" in said
    few = np.r_[np.full(57, 250.0), np.full(3, 250 * times)]  # one in twenty: not told of
    assert whole.sizes(few, reference) == ""
    assert whole.sizes(np.full(60, 999.0), reference.model_copy(update={"sides": None})) == ""


@pytest.mark.parametrize("patient", [r"p\d+", r"(p)\d+"])
def test_the_report_of_a_folder_tells_of_both(tmp_path: Path, patient: str) -> None:
    made = tiny_model.write(tmp_path / "m.onnx")
    old = made.reference.model_copy(update={"sides": [40.0] * 21, "class_shares": [0.25] * 4})
    tiny_model.write(tmp_path / "m.onnx", reference=old)
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = np.clip(np.array((200, 60, 60)) + rng.normal(0, 9, (80, 120, 3)), 0, 255).astype(np.uint8)
        path = tmp_path / f"images/p{number // 10}-{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    found = report.of_folder(path.parent, tmp_path / "m.onnx", patient)
    mix, sizes = found.whole
    assert "100% of the 60 images are called Benign (hematogone)" in mix
    assert "Among 6 patients" in mix
    assert "60 of the 60 pictures have other sizes" in sizes
    assert mix in report.page(found)


def test_the_model_file_gets_the_sides_of_the_validation_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    rows = [f"a/{n}.png,a,{n:064x},0,{100 + n},{400 + 4 * n},PNG,RGB,1,1" for n in range(3)]
    Path("data/manifest.csv").write_text("\n".join([",".join(manifest.COLUMNS), *rows]) + "\n")
    sides = manifest.sides(manifest.read()["path"].iloc[::-1])
    assert sides.tolist() == [204.0, 202.0, 200.0]
