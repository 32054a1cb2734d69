"""Risk–coverage, and the images that are no smears."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukdetect import images
from pipeline.evaluation import abstention, out_of_distribution
from pipeline.evaluation.abstention import Abstention, Referrals
from pipeline.evaluation.answers import Sample, answer
from pipeline.model_file import calibration, onnx_model
from pipeline.stage import Problem
from tests import tiny_model

ONE = np.ones((2, 6))
BCCD = Path("../shared/data/bccd")  # ordinary smears of another laboratory, MIT; not part of the project


def test_the_area_is_least_where_errors_are_the_least_confident() -> None:
    correct = np.array([1, 1, 1, 1, 0, 0], bool)
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    best = abstention.risk_coverage(confidence, correct, ONE)
    assert best == pytest.approx((1 / 5 + 2 / 6) / 6)  # risks 0 0 0 0 1/5 2/6 at the six coverages
    assert (abstention.risk_coverage(-confidence, correct, ONE) > 0.5).all()


def test_equal_confidence_gives_the_risk_of_all_whatever_the_order() -> None:
    correct = np.array([0, 0, 1, 1, 1, 1], bool)
    for seen in (correct, correct[::-1]):
        assert abstention.risk_coverage(np.full(6, 0.7), seen, ONE) == pytest.approx(1 / 3)


def test_a_resample_counts_an_image_as_often_as_it_was_drawn() -> None:
    correct, confidence = np.array([1, 0, 1], bool), np.array([0.9, 0.8, 0.7])
    twice = abstention.risk_coverage(confidence, correct, np.array([[1.0, 2, 0]]))
    assert twice == pytest.approx((1 * 0 + 2 * 2 / 3) / 3)


def test_foreign_images_are_of_the_models_size_differ_and_come_again_with_the_seed() -> None:
    smears = np.random.default_rng(0).integers(120, 230, (8, 48, 48, 3)).astype(np.uint8)
    first, again = out_of_distribution.kinds(smears, 3), out_of_distribution.kinds(smears, 3)
    assert {"photographs", "textures", "noise", "blank slides", "inverted colours", "screenshots"} == set(first)
    for name, each in first.items():
        assert each.dtype == np.uint8
        assert each.shape[1:] == (48, 48, 3), name
        assert (each == again[name]).all(), name
        assert len(np.unique(each.reshape(len(each), -1), axis=0)) > len(each) // 2, name
    assert (first["blank slides"].std(axis=(1, 2)) < 20).all()


def test_another_laboratorys_folder_is_read_as_the_server_reads_it_and_an_empty_one_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (200, 150, 180)).save(tmp_path / "a.png")
    assert out_of_distribution.folder(tmp_path, 32).shape == (1, 32, 32, 3)
    with pytest.raises(Problem, match=r"evaluate\.other_laboratory: no image in .*nowhere"):
        out_of_distribution.folder(tmp_path / "nowhere", 32)
    (tmp_path / "b.jpg").write_bytes(b"broken")
    with pytest.raises(Problem, match=r"evaluate\.other_laboratory: .*b\.jpg cannot be used"):
        out_of_distribution.folder(tmp_path, 32)
    (tmp_path / "b.jpg").unlink()
    os.mkfifo(tmp_path / "b.jpg")
    assert len(out_of_distribution.folder(tmp_path, 32)) == 1


def test_a_nucleus_stops_red_and_green_and_a_red_cell_of_any_colour_does_not() -> None:
    field = np.full((64, 64, 3), (225, 220, 230), np.uint8)
    red_cells = field.copy()
    red_cells[10:40, 10:40] = (215, 120, 130)  # haemoglobin and eosin let red through
    blue = field.copy()
    blue[10:40, 10:40] = (130, 195, 220)  # a thick smear, or an alkaline stain
    nucleus = red_cells.copy()
    nucleus[44:54, 44:54] = (90, 50, 140)
    assert images.stain(field) == 0
    assert images.stain(red_cells) < 0.2
    assert images.stain(blue) < 0.3
    assert images.stain(nucleus) > 0.8


def test_every_check_counts_what_it_adds_to_those_before(tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    smears = np.random.default_rng(0).integers(90, 160, (6, 32, 32, 3)).astype(np.uint8)
    black, grey = np.zeros((4, 32, 32, 3), np.uint8), np.full((4, 32, 32, 3), 110, np.uint8)
    grey[..., 2] = 120  # the model is unsure of it: pro, or pre
    model = onnx_model.load(tmp_path / "m.onnx")
    test = Sample(smears, np.full(6, 3), np.arange(6), ONE)
    found = abstention.measure(model, answer(model, smears), test, {"black": black, "grey": grey})
    added = {name: {check: share.value for check, share in each.added_by} for name, each in kinds(found)}
    assert added["black"] == {"unlikeness": 1, "quality": 0, "scores": 0}  # though it is too dark as well
    assert found.foreign["black"].referred_for["too_dark"].value == 1
    for name, each in kinds(found):
        assert sum(added[name].values()) == pytest.approx(each.referred.value)


def kinds(found: Abstention) -> list[tuple[str, Referrals]]:
    return [("smears", found), *found.foreign.items()]


def test_another_laboratorys_fields_have_a_nucleus_and_their_red_cells_alone_have_none() -> None:
    if not BCCD.is_dir():  # not `require`: it is no part of the project, and CI does not have it
        pytest.skip(f"{BCCD} is not here: ordinary smears of another laboratory")
    fields = [np.asarray(images.decode(path.read_bytes())) for path in sorted(BCCD.glob("*.jpg"))[::4]]
    stains = [images.stain(images.resize(Image.fromarray(field), 112)) for field in fields]
    looks = np.column_stack([np.ones((len(stains), 2)), stains])
    lowest = calibration.quality_bounds(looks[::2])["min_stain"]
    assert (looks[1::2, 2] < lowest).mean() <= 0.05

    tiles = [field[y : y + 160, x : x + 160].astype(float) for field in fields for y in (0, 160, 320) for x in (0, 480)]
    without = [
        images.stain(images.resize(Image.fromarray(tile.astype(np.uint8)), 112))
        for tile in tiles
        if (tile[..., 2] - tile[..., 1]).max() < 40 and np.ptp(tile[..., 1]) > 60  # nothing purple, and yet cells
    ]
    assert len(without) > 30
    assert np.mean(np.array(without) < lowest) > 0.8
