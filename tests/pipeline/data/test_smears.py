import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score

from leukdetect import images
from pipeline import params
from pipeline.data import smears
from pipeline.evaluation import nuclei
from pipeline.stage import Problem
from tests.project import ROOT

TREE_SHA256 = "52e516576a6f5bf6a1933e503d2c494d9100c20d8ee0a96f9ff96809cd42caf2"


def test_a_seed_gives_these_bytes_on_every_machine(tmp_path: Path) -> None:
    # After a deliberate change to the renderer, pin the new digest. If it fails on one machine alone,
    # something in the renderer depends on the processor (see its docstring).
    smears.write_demo(tmp_path, patients=2, images_per_patient=4, size=80, seed=20)

    tree = hashlib.sha256()
    for path in sorted(tmp_path.rglob("*.jpg")):
        tree.update(path.relative_to(tmp_path).as_posix().encode() + path.read_bytes())
    assert tree.hexdigest() == TREE_SHA256


def test_the_floats_do_not_depend_on_the_processors_vector_unit() -> None:
    # Before they are rounded to 8 bits, where a last bit would rarely show. NumPy falls back to its plain loops;
    # with them np.exp, np.sin and np.sum do give other last bits.
    program = """if True:
        import sys
        from pipeline.data import smear_camera as camera, smear_slide as slide
        for label, key in enumerate(slide.CLASSES):
            draws = slide.Draws(20, label)
            stains = slide.surroundings(160, 1.0, draws, draws)
            slide.lay_white_cell(stains, slide.MORPHOLOGY[key], 1.0, draws)
            light = camera.blur(camera.transmitted(stains[0] + stains[1]), 1.5)
            sys.stdout.buffer.write(stains.tobytes() + light.tobytes() + camera.expose(light, 180.0, 45.0).tobytes())
    """

    def floats(**environment: str) -> bytes:
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=os.environ | environment, cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout

    dispatched = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    assert floats() == floats(NPY_DISABLE_CPU_FEATURES=" ".join(dispatched))


def test_file_names_carry_class_patient_and_session(tmp_path: Path) -> None:
    smears.write_demo(tmp_path, patients=2, images_per_patient=6, size=32, seed=1)

    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(smears.CLASSES)
    assert [path.name for path in sorted((tmp_path / "pre").iterdir())] == [
        f"pre-p00{patient}-s{session}-000{index}.jpg" for patient in (1, 2) for session in (1, 2) for index in (1, 2, 3)
    ]


def test_the_demo_recipe_finds_the_patient_in_the_file_name(tmp_path: Path) -> None:
    pattern = params.load().prepare.patient
    assert pattern
    smears.write_demo(tmp_path, patients=2, images_per_patient=2, size=32, seed=1)

    found = [re.match(pattern, path.name) for path in tmp_path.rglob("*.jpg")]
    patients = {match["patient"] for match in found if match}
    assert patients == {f"{key}-p00{patient}" for key in smears.CLASSES for patient in (1, 2)}


def test_an_image_does_not_depend_on_how_many_are_rendered(tmp_path: Path) -> None:
    smears.write_demo(tmp_path / "few", patients=1, images_per_patient=2, size=32, seed=1)
    smears.write_demo(tmp_path / "many", patients=2, images_per_patient=4, size=32, seed=1)

    few = list((tmp_path / "few").rglob("*.jpg"))
    assert len(few) == 8
    for path in few:
        assert path.read_bytes() == (tmp_path / "many" / path.relative_to(tmp_path / "few")).read_bytes()


@pytest.mark.parametrize(
    "other",
    [("pro", 1, 1, 1, 20), ("pre", 2, 1, 1, 20), ("pre", 1, 2, 1, 20), ("pre", 1, 1, 2, 20), ("pre", 1, 1, 1, 21)],
    ids=["class", "patient", "session", "index", "seed"],
)
def test_each_part_of_the_key_changes_the_image(other: tuple[str, int, int, int, int]) -> None:
    key, patient, session, index, seed = other
    assert not np.array_equal(
        smears.render("pre", 1, 1, 1, 32, 20), smears.render(key, patient, session, index, 32, seed)
    )


def test_images_of_a_session_share_their_stain_and_other_sessions_do_not() -> None:
    def colours(session: int) -> np.ndarray:
        pixels = np.stack([smears.render("early", 5, session, index, 64, 20) for index in range(1, 13)])
        return pixels.mean(axis=(1, 2))

    sessions = np.stack([colours(session) for session in range(1, 9)])
    between = sessions.mean(axis=1).std(axis=0)
    within = sessions.std(axis=1).mean(axis=0)
    assert (between > within).all()


def test_the_cell_is_where_the_mask_says_and_its_nucleus_in_it() -> None:
    keys = [(key, patient, 1, 1) for key in smears.CLASSES for patient in range(1, 5)]
    names = [f"{key}/{key}-p{patient:03d}-s{session}-{index:04d}.jpg" for key, patient, session, index in keys]
    masks = smears.cell_masks(names, 80, 20)
    for key, mask in zip(keys, masks, strict=True):
        image = smears.render(*key, 80, 20)
        labelled, _ = ndimage.label(nuclei.nuclei(image))
        nucleus = labelled == labelled[40, 40]
        assert labelled[40, 40] > 0
        assert (nucleus & mask).sum() > 0.97 * nucleus.sum(), key
        assert nucleus.sum() < mask.sum() < 3 * nucleus.sum(), key


def test_a_mask_is_the_same_shape_at_any_size() -> None:
    names = ["pro-p003-s2-0004.jpg", "benign-p001-s1-0001.jpg"]
    large, small = smears.cell_masks(names, 160, 20), smears.cell_masks(names, 40, 20)
    assert (large[:, 2::4, 2::4] == small).mean() > 0.98
    assert not np.array_equal(small[0], small[1])


def test_a_name_that_the_demo_does_not_write_has_no_mask() -> None:
    with pytest.raises(Problem, match="WBC-Benign-001"):
        smears.cell_masks(["benign/WBC-Benign-001.jpg"], 32, 1)


def test_an_odd_number_of_images_a_patient_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"images_per_patient must be even, not 3"):
        smears.write_demo(tmp_path, patients=1, images_per_patient=3, size=32, seed=1)
    assert not list(tmp_path.iterdir())


def test_golden_images_take_the_classes_in_turn_and_are_none_of_the_demo(tmp_path: Path) -> None:
    smears.write_demo(tmp_path, patients=1, images_per_patient=2, size=48, seed=3)
    demo = {path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    files = smears.golden(6, 48, 3)

    assert len(set(files)) == 6
    assert not demo & set(files)
    assert files[:4] == smears.golden(4, 48, 3)
    for data in files:
        assert Image.open(io.BytesIO(data)).size == (48, 48)


def test_images_pass_the_recipes_own_checks() -> None:
    checks = params.load().validate_
    for key in smears.CLASSES:
        for patient in range(1, 9):
            pixels = smears.render(key, patient, 1, 1, 80, 20)
            assert checks.brightness[0] < images.quality(pixels)[0] < checks.brightness[1]
            assert images.sharpness(pixels) > checks.min_sharpness


@pytest.fixture(scope="module")
def cohort() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 [N, 80, 80, 3], label and patient: 15 patients a class, 6 images each."""
    keys = [(label, p, s, i) for label in range(4) for p in range(1, 16) for s in (1, 2) for i in range(1, 4)]
    pixels = np.stack([smears.render(smears.CLASSES[label], p, s, i, 80, 20) for label, p, s, i in keys])
    return pixels, np.array([key[0] for key in keys]), np.array([key[1] for key in keys])


def held_out_accuracy(features: np.ndarray, label: np.ndarray, patient: np.ndarray) -> float:
    """Balanced accuracy of a random forest on the last 40 % of the patients, trained on the others."""
    train = patient <= 9
    forest = RandomForestClassifier(300, random_state=0).fit(features[train], label[train])
    return float(balanced_accuracy_score(label[~train], forest.predict(features[~train])))


def test_colour_alone_does_not_tell_the_class(cohort: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    pixels, label, patient = cohort
    colour = np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1)
    assert held_out_accuracy(colour, label, patient) < 0.40


def test_morphology_tells_the_class(cohort: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    # The darkest part of red light is the nucleus: how far it and its texture reach is morphology.
    pixels, label, patient = cohort
    axis = np.arange(80) - 39.5
    ring = np.minimum(np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2) // 4, 10).astype(int)
    red = pixels[..., 0].astype(np.float64)
    rough = np.abs(red - np.roll(red, 2, axis=1)) + np.abs(red - np.roll(red, 2, axis=2))
    profile = [[plane[:, ring == r].mean(axis=1) for r in range(10)] for plane in (red, rough)]
    features = np.concatenate(profile).T
    assert held_out_accuracy(features, label, patient) > 0.60
