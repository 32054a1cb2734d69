"""`pipeline.validate` on folders of small images that are right, or wrong in one way."""

import json
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukdetect import apart, cost, images
from pipeline import prepare, stage, validate
from pipeline.data import manifest, splits, survey
from tests import bombs
from tests.leukdetect.formats.tiffs import Page, tiff
from tests.project import ROOT

RECIPE = ROOT / "params.yaml"
KEYS = ["benign", "early", "pre", "pro"]
RAW = Path("data/raw")
RESULTS = Path("data/validation/results.json")
PAGE = Path("data/validation/data_docs/index.html")

Recipe = Callable[..., None]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """In a new folder with four images a class, all in order; call it to change params.validate."""
    monkeypatch.chdir(tmp_path)

    def change(**knobs: Any) -> None:
        params = yaml.safe_load(RECIPE.read_text())
        params["validate"] |= {"min_images_per_class": 3} | knobs
        Path("params.yaml").write_text(yaml.safe_dump(params))

    change()
    for key in KEYS:
        for number in range(4):
            save(f"{key}/{key}-{number}.png", key, number)
    return change


def save(name: str, *seed: object, size: tuple[int, int] = (48, 40), low: int = 60, high: int = 250) -> None:
    """Writes noise that depends on `seed`: bright and sharp enough."""
    path = RAW / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(seed).encode()))
    Image.fromarray(rng.integers(low, high, (size[1], size[0], 3), np.uint8)).save(path)


def failure() -> str:
    with pytest.raises(stage.Problem) as caught:
        validate.main()
    return str(caught.value)


def results() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(RESULTS.read_text())
    return read


@pytest.mark.usefixtures("recipe")
def test_the_manifest_lists_each_usable_image_with_what_the_server_would_see() -> None:
    validate.main()

    table = manifest.read()
    assert list(table.columns) == manifest.COLUMNS
    assert list(table["path"]) == sorted(f"{key}/{key}-{number}.png" for key in KEYS for number in range(4))
    assert list(table["class"]) == [key for key in KEYS for _ in range(4)]
    row = table.iloc[5]
    file = RAW / row["path"]
    pixels = np.asarray(images.decode(file.read_bytes()))
    assert row["sha256"] == stage.sha256(file)
    assert row["dhash"] == f"{survey.dhash(Image.open(file)):016x}"
    assert (row["width"], row["height"], row["format"], row["mode"]) == (48, 40, "PNG", "RGB")
    assert row["brightness"] == pytest.approx(images.quality(pixels)[0], abs=1e-4)
    assert row["sharpness"] == pytest.approx(images.sharpness(pixels), abs=1e-4)


@pytest.mark.usefixtures("recipe")
def test_the_same_images_give_the_same_bytes() -> None:
    outputs = [manifest.MANIFEST_FILE, RESULTS, PAGE]
    save("pro/zz.png", "pro", 0)  # a copy, so that there is something to list
    validate.main()
    before = [file.read_bytes() for file in outputs]
    validate.main()
    assert [file.read_bytes() for file in outputs] == before
    assert sorted(path.name for path in PAGE.parent.rglob("*")) == ["index.html"]


@pytest.mark.usefixtures("recipe")
def test_copies_within_a_class_are_counted_and_all_but_the_first_by_name_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save("pro/a.png", "pro", 1)
    save("pro/z.png", "pro", 1)
    validate.main()

    assert [path for path in manifest.read()["path"] if path.startswith("pro")] == [
        "pro/a.png",
        "pro/pro-0.png",
        "pro/pro-2.png",
        "pro/pro-3.png",
    ]
    assert results()["duplicates"] == [
        {"path": "pro/pro-1.png", "copy_of": "pro/a.png"},
        {"path": "pro/z.png", "copy_of": "pro/a.png"},
    ]
    printed = capsys.readouterr().out
    assert "18 files, 16 usable images" in printed
    assert printed.splitlines()[5].split() == ["pro", "4", "0", "2", "1.0"]  # images, unreadable, copies, imbalance


@pytest.mark.usefixtures("recipe")
def test_the_same_bytes_under_two_labels_are_an_error_that_names_both_files() -> None:
    save("early/stray.png", "pro", 1)
    message = failure()
    assert (
        "the same bytes under two labels: early/stray.png (pro/pro-1.png), pro/pro-1.png (early/stray.png)" in message
    )
    assert "Find out which label is right" in message


def test_unreadable_files_are_dropped_up_to_max_broken_and_an_error_beyond(recipe: Recipe) -> None:
    whole = (RAW / "pre/pre-0.png").read_bytes()
    (RAW / "pre/half.png").write_bytes(whole[: len(whole) // 2])
    (RAW / "pro/note.jpg").write_text("not an image")

    recipe(max_broken=2)
    validate.main()
    assert len(manifest.read()) == 16
    assert [item["path"] for item in results()["broken"]] == ["pre/half.png", "pro/note.jpg"]
    assert "not an image of a known type" in results()["broken"][1]["reason"]

    recipe(max_broken=1)
    message = failure()
    assert "cannot be read as an image: pre/half.png (the PNG data is truncated or corrupt" in message
    assert "raise validate.max_broken" in message


def test_what_would_be_trained_on_wrongly_is_an_error_that_names_it(recipe: Recipe) -> None:
    """Twelve bits in sixteen would be black, and a composite's first channel grey."""
    shown = np.asarray(Image.open(RAW / "pre/pre-0.png"))
    (RAW / "pre/planes.tif").write_bytes(tiff(Page(shown * np.uint16(257), apart=True)))
    (RAW / "pre/dark.tif").write_bytes(tiff(Page(shown[..., 0] * np.uint16(16))))
    channel = Page(shown[..., 0], tags={270: (2, b"ImageJ=1\nchannels=3\n")})
    (RAW / "pre/channels.tif").write_bytes(tiff(channel, channel, channel))

    message = failure()
    assert "pre/channels.tif (the TIFF keeps each colour channel as a grey page of its own" in message
    assert "pre/dark.tif (the image's pixels are 16-bit numbers from" in message
    assert "planes" not in message
    recipe(max_broken=2)
    validate.main()
    rows = manifest.read().set_index("path")
    assert rows.loc["pre/planes.tif", "dhash"] == rows.loc["pre/pre-0.png", "dhash"]


@pytest.mark.usefixtures("recipe")
def test_a_colour_profile_that_was_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(RAW / "pro/pro-1.png") as image:
        image.save(RAW / "pro/pro-1.png", icc_profile=b"no profile")
    validate.main()
    assert "1 images, such as pro/pro-1.png: its colour profile is broken" in capsys.readouterr().out


@pytest.mark.usefixtures("recipe")
def test_a_failure_leaves_reports_to_look_at_and_no_manifest_not_even_an_old_one() -> None:
    validate.main()
    (RAW / "pro/empty.jpg").touch()
    assert "pro/empty.jpg (the file is empty)" in failure()
    assert not manifest.MANIFEST_FILE.exists()
    assert results()["success"] is False
    assert 'Validation <span class="bad">failed' in PAGE.read_text()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"size": (40, 20)}, "too small (shorter side below 32 px): pro/odd.png (20)"),
        ({"size": (40, 130)}, "too large (longer side above 128 px; their pixels were not read): pro/odd.png (130)"),
        ({"high": 80, "low": 0}, "too dark or too bright (mean luma outside 60 to 240): pro/odd.png (39"),
        ({"low": 245, "high": 256}, "too dark or too bright (mean luma outside 60 to 240): pro/odd.png (250"),
        ({"low": 150, "high": 151}, "empty or out of focus (sharpness below 1): pro/odd.png (0)"),
    ],
)
def test_an_image_out_of_bounds_is_named_with_its_value(recipe: Recipe, image: dict[str, Any], said: str) -> None:
    recipe(max_side=128, brightness=[60, 240])
    save("pro/odd.png", "odd", **image)
    message = failure()
    assert said in message
    assert len(message.splitlines()) == 3  # the one check, between what happened and where to look
    assert "or change validate." in message


def test_at_most_three_files_are_named_and_the_rest_counted(recipe: Recipe) -> None:
    recipe(min_sharpness=1e9)
    message = failure()
    assert message.count(".png") == 3
    assert "benign/benign-2.png" in message
    assert "and 13 more" in message
    sharpness = next(e for e in results()["expectations"] if e["kwargs"]["column"] == "sharpness")
    assert len(sharpness["unexpected"]) == 16


def test_a_class_that_is_too_small_is_named_with_its_count_and_its_imbalance(recipe: Recipe) -> None:
    recipe(max_imbalance=1.5)
    (RAW / "early/early-0.png").unlink()
    (RAW / "early/early-1.png").unlink()
    message = failure()
    assert "fewer than 3 usable images in the class: early (2)" in message
    assert "the largest class has more than 1.5 times this class's images: early (2)" in message


def test_copies_and_unreadable_files_do_not_count_as_images_of_their_class(recipe: Recipe) -> None:
    recipe(min_images_per_class=5, max_broken=9)
    for key in KEYS[:3]:
        save(f"{key}/more.png", key, "more")
    save("pro/copy.png", "pro", 0)
    (RAW / "pro/broken.png").touch()
    assert "fewer than 5 usable images in the class: pro (4)" in failure()


@pytest.mark.usefixtures("recipe")
def test_a_declared_class_without_a_single_image_is_an_error() -> None:
    for file in (RAW / "pre").iterdir():
        file.unlink()
    assert "fewer than 3 usable images in the class: pre (0)" in failure()


@pytest.mark.usefixtures("recipe")
def test_a_folder_that_is_no_declared_class_and_a_file_in_no_folder_are_errors() -> None:
    save("lymphoma/1.png", "new")
    save("loose.png", "loose")
    assert (
        "in a folder that is none of the declared classes (benign, early, pre, pro): "
        "loose.png ((none)), lymphoma/1.png (lymphoma)"
    ) in failure()


@pytest.mark.usefixtures("recipe")
def test_files_none_of_which_is_an_image_are_reported_like_any_other() -> None:
    for file in RAW.rglob("*.png"):
        file.write_text(file.name)
    assert "cannot be read as an image: benign/benign-0.png" in failure()
    assert "and 13 more" in failure()
    assert len(results()["broken"]) == 16


@pytest.mark.usefixtures("recipe")
def test_without_any_file_the_message_says_which_stage_brings_them() -> None:
    for file in RAW.rglob("*.png"):
        file.unlink()
    assert failure() == "data/raw holds no images; `dvc repro fetch` puts them there"


@pytest.mark.usefixtures("recipe")
def test_an_image_that_is_not_rgb_is_usable_and_its_mode_is_recorded() -> None:
    grey = Image.open(RAW / "pro/pro-0.png").convert("L")
    grey.save(RAW / "pro/grey.tif")
    grey.convert("CMYK").save(RAW / "pro/print.jpg")
    validate.main()
    modes = manifest.read().set_index("path")["mode"]
    assert (modes["pro/grey.tif"], modes["pro/print.jpg"]) == ("L", "CMYK")


@pytest.mark.usefixtures("recipe")
def test_data_docs_need_no_network_and_show_every_expectation() -> None:
    save("pro/<script>.png", "dark", high=5, low=0)
    save("pro/<script>copy.png", "dark", high=5, low=0)
    failure()
    page = PAGE.read_text()
    assert not re.search(r"https?:", page)
    assert "<script" not in page
    assert "pro/&lt;script&gt;.png" in page
    assert "{'" not in page  # rows, not raw dicts
    assert page.count("<section") == len(results()["expectations"]) == 11
    assert "values must be greater than or equal to" in page  # Great Expectations' own words
    assert page.count('<section class="failed">') == 1


@pytest.mark.usefixtures("recipe")
def test_looking_in_threads_leaves_the_warning_filters_as_they_were() -> None:
    for number in range(60):
        save(f"pro/more-{number}.png", number)
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns so often that a race, if there is one, shows in one of five runs
    try:
        for _ in range(25):
            survey.look_at_all(RAW, 8192)
            assert list(warnings.filters) == before
    finally:
        sys.setswitchinterval(interval)


def test_an_image_beyond_max_side_is_never_decoded(tmp_path: Path) -> None:
    header_of_a_huge_one = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    header_of_a_huge_one += (100_000).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little") + (24).to_bytes(2, "little")
    file = tmp_path / "huge.bmp"
    file.write_bytes(header_of_a_huge_one + bytes(24))
    facts = survey.look(file, max_side=8192)
    assert (facts.width, facts.problem, facts.brightness) == (100_000, None, None)


def test_dhash_sets_a_bit_where_a_pixel_is_brighter_than_its_left_neighbour() -> None:
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (80, 1))
    assert survey.dhash(Image.fromarray(ramp)) == 2**64 - 1
    assert survey.dhash(Image.fromarray(ramp[:, ::-1].copy())) == 0
    upper_half = np.vstack([ramp[:40], ramp[40:, ::-1]])
    assert survey.dhash(Image.fromarray(upper_half)) == 0xFFFFFFFF00000000


def test_dhash_hardly_changes_with_size_and_compression_and_much_with_content(tmp_path: Path) -> None:
    def cells(seed: int) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
        return Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC)

    one, other = cells(1), cells(2)
    one.resize((150, 150)).save(tmp_path / "again.jpg", quality=60)
    again = Image.open(tmp_path / "again.jpg")
    assert (survey.dhash(one) ^ survey.dhash(again)).bit_count() <= 2
    assert (survey.dhash(one) ^ survey.dhash(other)).bit_count() >= 16


def test_the_manifest_reads_back_classes_and_hashes_that_look_like_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = ["null/1.png", "null", "1" * 64, "0000000000000012", 40, 40, "PNG", "1", 100.25, 3.5]
    manifest.write(pd.DataFrame([row], columns=manifest.COLUMNS))
    back = manifest.read().iloc[0]
    assert [str(value) for value in back] == [str(value) for value in row]


def test_a_missing_manifest_says_which_stage_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(stage.Problem, match=r"manifest\.csv is missing; `dvc repro validate` makes it"):
        manifest.read()


def test_a_file_made_to_cost_is_named_with_why_and_the_others_are_used(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(apart._PATIENT, "seconds", 1)
    bomb = bombs.png_of_profiles(3_000)
    (RAW / "benign/bomb.png").write_bytes(bomb)
    recipe(max_broken=1)
    validate.main()
    [broken] = results()["broken"]
    assert broken["path"] == "benign/bomb.png"
    assert "takes more than 1 s of processor time" in broken["reason"]


@pytest.mark.usefixtures("recipe")
def test_what_is_decoded_apart_is_seen_as_the_rest_is() -> None:
    odd, even = RAW / "benign/odd.png", RAW / "benign/even.png"
    save("benign/even.png", "noise")
    info = PngInfo()
    for number in range(cost.PARTS + 5):
        info.add_text(f"text {number}", "…")
    with Image.open(even) as image:
        image.save(odd, pnginfo=info)
    assert not cost.ordinary(odd.read_bytes())
    found = survey.look(odd, 4096)
    assert replace(found, sha256="") == replace(survey.look(even, 4096), sha256="")
    assert found.dhash
    assert survey.look(odd, 8) == replace(found, dhash=None, brightness=None, sharpness=None)


@pytest.mark.usefixtures("recipe")
def test_prepare_names_a_file_that_has_become_unusable_since(monkeypatch: pytest.MonkeyPatch) -> None:
    validate.main()
    (RAW / "pre/pre-0.png").write_bytes((RAW / "pre/pre-0.png").read_bytes()[:200])
    monkeypatch.setattr(splits, "assign", lambda frame, *_: frame.assign(split="train", group=frame["path"]))
    with pytest.raises(stage.Problem, match=r"data/raw/pre/pre-0\.png cannot be used: the PNG .* Take it away"):
        prepare.main()
    assert not Path("data/prepared").exists()
