"""The look at a file's structure: what it passes is cheap, and it passes what cameras and viewers write."""

import contextlib
import io
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leukdetect import cost
from leukdetect.cost import ordinary
from leukdetect.decoding import decode
from leukdetect.images import ImageError
from tests.bombs import BOMBS, png, png_chunk, saved
from tests.load.mutations import SEEDS, mutate
from tests.memory import forget_peak, peak


@pytest.mark.parametrize("kind", SEEDS)
def test_ordinary_files_of_every_kind_are_cheap(kind: str) -> None:
    assert ordinary(SEEDS[kind]) == (kind != "avif")  # whose parts may refer to each other: always decoded apart


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": bytes(300_000)}),
        ("JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0", "comment": b"x" * 60_000}),
        ("PNG", {}),
        ("PNG", {"icc_profile": bytes(5000)}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "packbits"}),
    ],
)
def test_twelve_megapixels_of_a_microscopes_camera_are_cheap(kind: str, options: dict[str, Any]) -> None:
    assert ordinary(saved(kind, (4096, 3000), **options))


def test_a_large_png_in_chunks_of_8_kb_is_cheap() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    assert ordinary(buffer.getvalue())


@pytest.mark.parametrize("name", BOMBS)
def test_what_may_cost_much_is_not_passed(name: str) -> None:
    assert not ordinary(BOMBS[name]())


def test_what_is_no_image_is_not_sent_to_another_process_to_say_so() -> None:
    assert ordinary(b"")
    assert ordinary(b"GIF89a" + bytes(1000))
    assert ordinary(bytes(100_000))


@pytest.mark.parametrize("size", range(60))
def test_a_file_that_is_cut_off_in_its_head_is_looked_at_without_a_fault(size: int) -> None:
    for data in SEEDS.values():
        ordinary(data[:size])


def test_a_pngs_chunk_that_is_too_long_for_the_file_costs_nothing() -> None:
    data = png(before=png_chunk(b"teSt"))
    assert ordinary(data.replace(b"\0\0\0\0teSt", b"\x7f\xff\xff\xffteSt"))


@given(st.binary(max_size=300), st.integers(0, 5))
def test_scans_are_counted_wherever_they_begin(data: bytes, at: int) -> None:
    for each in (data, data[:at] + b"\xff\xda" + data[at:]):
        assert cost.scans(each) == each.count(b"\xff\xda")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32 - 1))
def test_what_is_passed_of_mutated_files_is_cheap_indeed(kind: str, seed: int) -> None:
    data = mutate(SEEDS[kind], np.random.default_rng(seed))
    if not ordinary(data):
        return
    before = time.thread_time()
    with contextlib.suppress(ImageError):
        decode(data, 32)
    assert time.thread_time() - before < 5  # ten times what is promised: a slow machine is no fault


def test_what_is_passed_takes_little_memory() -> None:
    """12 megapixels that have to be turned, the most that is passed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved("JPEG", (4096, 3200), exif=exif)
    assert ordinary(data)
    forget_peak()
    before = peak()
    decode(data, 32)
    assert peak() - before < 200e6
