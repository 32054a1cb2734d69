"""Decoding in a process with a budget: the same answers, and what is over it, crashes or is given up is ended."""

import io
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import leukdetect
from leukdetect import apart, decoding, images
from leukdetect.apart import Ask, CostlyError, GivenUpError, Helper
from tests import tiny_model
from tests.bombs import BOMBS, bmp_of_runs, png_of_empty_chunks, png_of_profiles, saved, webp_of_frames
from tests.load.mutations import SEEDS, mutate

MOST = 40_000_000


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    helper = Helper()
    yield helper
    helper.close()


def pid(helper: Helper) -> int:
    assert helper._process
    return helper._process.pid


def children(helper: Helper) -> str:
    return Path(f"/proc/{pid(helper)}/task/{pid(helper)}/children").read_text()


@pytest.mark.parametrize("kind", sorted(set(SEEDS) - {"png, 16 bit"}))  # which is refused: it is too dark
def test_a_file_gives_the_same_pixels_and_header_as_in_this_process(kind: str, helper: Helper) -> None:
    header, pixels = Ask(SEEDS[kind], "seen", 32, MOST).answer(helper)
    here = decoding.decode(SEEDS[kind], 32)
    assert header == here.header
    np.testing.assert_array_equal(pixels, here.pixels)


def test_a_picture_for_a_person_has_the_files_own_proportions(helper: Helper) -> None:
    data = saved("PNG", (300, 200))
    for side, expected in ((400, (200, 300, 3)), (150, (100, 150, 3))):
        assert Ask(data, "picture", side, MOST).answer(helper)[1].shape == expected


def test_a_file_that_is_no_image_gets_the_same_words_as_in_this_process(helper: Helper) -> None:
    random = np.random.default_rng(0)
    broken = [b"", b"no image", saved("PNG", (7000, 7000)), *(mutate(SEEDS["png"], random) for _ in range(30))]
    refused = 0
    for data in broken:
        try:
            expected = decoding.decode(data, 32).pixels
        except images.ImageError as error:
            refused += 1
            words = re.escape(str(error).split("0x")[0])  # then comes an object's address
            with pytest.raises(type(error), match=words):
                Ask(data, "seen", 32, MOST).answer(helper)
        else:
            np.testing.assert_array_equal(Ask(data, "seen", 32, MOST).answer(helper)[1], expected)
    assert refused > 10


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_more_processor_time_than_its_budget(name: str) -> None:
    bomb, helper = BOMBS[name](), Helper()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        Ask(bomb, "seen", 32, MOST, seconds=1).answer(helper)
    except images.ImageError:
        pass
    finally:
        helper.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The budget, the limit's coarseness, and the start of the helper.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1 + 1 + 2


def test_over_its_time_or_memory_an_image_is_refused_with_what_to_do(helper: Helper) -> None:
    with pytest.raises(CostlyError, match=r"takes more than 1 s of processor time\. Save it again"):
        Ask(png_of_profiles(4_000), "seen", 32, MOST, seconds=1).answer(helper)
    with pytest.raises(CostlyError, match=r"takes more than 50 MB of memory\. Save it again"):
        Ask(saved("PNG", (4000, 4000), "RGBA"), "seen", 32, MOST, memory=50_000_000).answer(helper)
    assert Ask(SEEDS["png"], "seen", 32, MOST).answer(helper)[1].any()  # the next one is none the worse


def test_given_up_it_is_ended_and_the_next_has_its_turn(helper: Helper) -> None:
    asks = [Ask(png_of_empty_chunks(1_600_000), "seen", 32, MOST, seconds=60) for _ in range(3)]
    given_up: list[Ask] = []

    def wait_for(ask: Ask) -> None:
        try:
            ask.answer(helper)
        except GivenUpError:
            given_up.append(ask)

    threads = [threading.Thread(target=wait_for, args=[ask]) for ask in asks]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    for ask in asks:  # one is being decoded, two wait
        ask.hang_up()
    for thread in threads:
        thread.join()
    assert len(given_up) == 3
    Ask(SEEDS["png"], "seen", 32, MOST).answer(helper)
    assert children(helper) == ""


def test_given_up_before_its_turn_it_is_never_begun(helper: Helper) -> None:
    ask = Ask(SEEDS["png"], "seen", 32, MOST)
    ask.hang_up()
    with pytest.raises(GivenUpError):
        ask.answer(helper)


def test_a_decoder_that_crashes_is_the_images_fault(helper: Helper) -> None:
    ask = Ask(bmp_of_runs(3000, 3000), "seen", 32, MOST, seconds=60)

    def crash() -> None:
        while not (child := children(helper)):
            time.sleep(0.01)
        os.kill(int(child), signal.SIGSEGV)

    Ask(SEEDS["png"], "seen", 32, MOST).answer(helper)  # it runs
    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(images.ImageError, match="the image's decoder crashed on it"):
        ask.answer(helper)
    thread.join()


def test_a_helper_that_was_killed_is_started_again() -> None:
    helper = Helper()
    try:
        Ask(SEEDS["png"], "seen", 32, MOST).answer(helper)
        first = pid(helper)
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        Ask(SEEDS["png"], "seen", 32, MOST).answer(helper)
        assert pid(helper) != first
    finally:
        helper.close()
    assert not Path(f"/proc/{first}").exists()


def test_closed_it_leaves_no_process_even_while_it_decodes() -> None:
    helper = Helper()
    ask = Ask(bmp_of_runs(3000, 3000), "seen", 32, MOST, seconds=60)
    failures: list[Exception] = []

    def wait() -> None:
        try:
            ask.answer(helper)
        except images.ImageError as error:
            failures.append(error)

    Ask(SEEDS["png"], "seen", 32, MOST).answer(helper)
    thread = threading.Thread(target=wait)
    thread.start()
    while not (child := children(helper)):
        time.sleep(0.01)
    helper.close()
    thread.join()
    assert failures
    assert not Path(f"/proc/{int(child)}").exists()


def test_the_librarys_answer_has_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    model = leukdetect.open(tmp_path / "m.onnx")
    frames = webp_of_frames(2)
    with Image.open(io.BytesIO(frames)) as image:
        expected = model.predict(image)
    assert model.predict(frames) == expected  # an animation goes to the other process
    monkeypatch.setattr(apart.Ask.__init__, "__defaults__", (1, apart.MEMORY))
    with pytest.raises(CostlyError):
        model.predict(png_of_profiles(4_000))
