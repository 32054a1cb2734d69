"""Folders of cells to pretrain on: which images train, which are held out, and which are left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import cells
from pipeline.stage import Problem


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A label set of two classes of four, and 3 images without labels."""
    for number in range(8):
        draw(tmp_path / "set" / "ab"[number % 2] / f"{number}.png", number)
    for number in range(3):
        draw(tmp_path / "free" / "deep" / f"{number}.png", 100 + number)
    return tmp_path


def read(folder: Path, hold_out: float = 0.25) -> cells.Cells:
    return cells.read([folder / "set"], [folder / "free"], hold_out, 16, folder / "images.npy")


def test_the_last_of_each_class_by_name_are_held_out_and_pixels_are_those_of_the_one_decoder(folder: Path) -> None:
    found = read(folder)
    held = found.rows[found.rows["side"] == cells.HELD_OUT]
    assert held["path"].tolist() == ["a/6.png", "b/7.png"]
    assert found.sets == {"set": ["a", "b"]}
    assert found.owner.tolist() == [0] * 8 + [-1] * 3
    assert found.label.tolist() == [0] * 4 + [1] * 4 + [0] * 3
    expected = Image.open(folder / "set/b/7.png").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(found.pixels[held.index[1]], np.asarray(expected))


def test_broken_files_and_copies_are_counted_and_left_out(folder: Path) -> None:
    (folder / "set/a/0.png").write_bytes((folder / "set/a/0.png").read_bytes()[:200])
    (folder / "set/a/8.png").write_bytes((folder / "set/a/2.png").read_bytes())
    (folder / "set/a/notes.txt").write_text("notes")
    draw(folder / "set/stray.png", 9)
    found = read(folder)
    assert dict(found.left_out) == {
        "broken: the PNG data is truncated or corrupt (image file is truncated)": 1,
        "copies": 1,
        "files that are no image (*.txt)": 1,
        "images in no class's folder": 1,
    }
    assert found.table().loc["set", "a"].to_dict() == {cells.TRAIN: 2, cells.HELD_OUT: 1, cells.LEFT_OUT: 2}


def test_a_copy_of_a_held_out_image_trains_nowhere(folder: Path) -> None:
    (folder / "free/copy.png").write_bytes((folder / "set/b/7.png").read_bytes())
    found = read(folder)
    assert found.rows.set_index("path")["side"]["copy.png"] == cells.LEFT_OUT
    assert len(found.of(cells.TRAIN, labelled=False)) == 3


def test_two_sets_of_one_name_stay_two(folder: Path) -> None:
    for number in range(4):
        draw(folder / "elsewhere/set" / "xy"[number % 2] / f"{number}.png", 50 + number)
    found = cells.read([folder / "set", folder / "elsewhere/set"], [], 0, 16, folder / "images.npy")
    assert found.sets == {"set": ["a", "b"], "set-2": ["x", "y"]}


def test_an_image_under_two_classes_is_left_out_of_both(folder: Path) -> None:
    (folder / "set/b/9.png").write_bytes((folder / "set/a/2.png").read_bytes())
    found = read(folder)
    assert dict(found.left_out) == {"under two classes": 2}
    assert found.rows.set_index("path")["side"][["a/2.png", "b/9.png"]].tolist() == [cells.LEFT_OUT] * 2


@pytest.mark.parametrize("hold_out", [0.0, 0.5])
def test_a_class_without_a_usable_image_is_named(folder: Path, hold_out: float) -> None:
    for path in (folder / "set/a").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(Problem, match="class a of set has no image to train on: 4 left out"):
        read(folder, hold_out)


def test_a_share_that_leaves_nothing_to_train_on_is_refused(folder: Path) -> None:
    with pytest.raises(Problem, match="class a of set has no image to train on: 4 held out"):
        read(folder, 0.9)
