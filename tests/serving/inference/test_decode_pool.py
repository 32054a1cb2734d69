"""The decode pool: its bound, what becomes of what waits, and who decodes what."""

import asyncio
import io
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukdetect import images
from serving.inference import decode_pool, examine
from serving.inference.decode_pool import DecodePool
from serving.inference.engine import Engine, Scores
from serving.inference.promise import Promise
from serving.metrics import Metrics
from serving.problems import ProblemError
from tests import tiny_model

SECONDS = 10


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def pool(gate: threading.Event) -> Iterator[DecodePool]:
    pool = DecodePool(threads=1, waiting=2)
    yield pool
    gate.set()
    pool.close()


def test_one_more_than_may_wait_is_refused_and_the_rest_done_in_order(pool: DecodePool, gate: threading.Event) -> None:
    done: list[int] = []
    last = threading.Event()
    pool.submit(lambda: done.append(int(gate.wait(SECONDS)) - 1))
    pool.submit(lambda: done.append(1))
    pool.submit(lambda: done.append(2))
    with pytest.raises(ProblemError) as refused:
        pool.submit(lambda: done.append(3))
    assert refused.value.status == 503
    gate.set()
    while len(done) < 2:  # then there is room again
        time.sleep(0.001)
    pool.submit(last.set)
    assert last.wait(SECONDS)
    assert done == [0, 1, 2]


class Model:
    """Answers when the gate opens."""

    best_batch = 4
    seconds_an_image = 0.001
    contract = SimpleNamespace(decode=SimpleNamespace(size=32))

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.runs = 0

    def run(self, pixels: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        self.started.set()
        assert self.gate.wait(SECONDS)
        self.runs += 1
        return [np.zeros(len(pixels)) for _ in outputs]


@pytest.fixture
def service(pool: DecodePool) -> Iterator[Any]:
    engine = Engine({"predict": 10, "explain": 10, "shadow": 10}, 0.001, Metrics())
    yield SimpleNamespace(pool=pool, engine=engine, settings=SimpleNamespace(max_pixels=1_000_000))
    engine.close()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that began to decode something."""
    names: list[str] = []

    def decode(*arguments: Any) -> decode_pool.Decoded:
        names.append(threading.current_thread().name)
        return decode_pool.decode(*arguments)

    monkeypatch.setattr(examine, "decode", decode)
    return names


def examined(service: Any, model: Any, data: bytes) -> Coroutine[Any, Any, tuple[decode_pool.Decoded, Scores, float]]:
    return asyncio.wait_for(examine.examine(service, model, data, deadline=time.perf_counter() + SECONDS), SECONDS)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


SMALL = tiny_model.jpeg((1, 2, 3))
FEW_BYTES = png(np.zeros((600, 600), np.uint8))  # yet many pixels
MANY_BYTES = png(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "expected"),
    [(SMALL, ["inference"]), (FEW_BYTES, ["inference", "decode_0"]), (MANY_BYTES, ["decode_0"])],
    ids=["small", "few bytes but many pixels", "many bytes"],
)
def test_an_image_is_decoded_and_scored_and_only_a_small_one_by_the_thread_that_runs_the_model(
    service: Any, threads: list[str], data: bytes, expected: list[str]
) -> None:
    image, scores, decode_seconds = asyncio.run(examined(service, Model(), data))
    assert image.pixels.shape == (32, 32, 3)
    assert scores.outputs["unlikeness"] == 0
    assert decode_seconds > 0
    assert threads == expected


def test_a_bomb_in_few_bytes_costs_the_models_thread_no_pixel(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("a pixel was decoded"))
    bomb = png(np.zeros((2000, 2000), np.uint8))
    assert len(bomb) < examine.SMALL_BYTES
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(service, Model(), bomb))
    assert refused.value.status == 413


@pytest.mark.parametrize("data", [b"no image", b"no image" * 10_000], ids=["few bytes", "many bytes"])
def test_what_cannot_be_decoded_never_reaches_the_model(service: Any, data: bytes) -> None:
    model = Model()
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(service, model, data))
    assert (refused.value.status, model.runs) == (415, 0)


@pytest.mark.parametrize("data", [SMALL, MANY_BYTES], ids=["small", "many bytes"])
def test_an_image_that_is_cancelled_before_its_turn_is_never_decoded(
    service: Any, threads: list[str], gate: threading.Event, data: bytes
) -> None:
    model = Model()
    model.gate.clear()

    async def main() -> None:
        running = asyncio.create_task(examined(service, model, SMALL))
        assert await asyncio.to_thread(model.started.wait, SECONDS)
        service.pool.submit(lambda: gate.wait(SECONDS) and None)  # both threads are busy now
        task = asyncio.create_task(examined(service, model, data))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        model.gate.set()
        await running
        await examined(service, model, MANY_BYTES)  # after the cancelled one, whichever way it went
        await examined(service, model, SMALL)

    asyncio.run(main())
    assert threads == ["inference", "decode_0", "inference"]


def test_an_image_with_too_many_pixels_for_the_models_thread_is_refused_where_the_pool_is_full(
    service: Any, gate: threading.Event
) -> None:
    for _ in range(3):  # one that runs, and two that wait
        service.pool.submit(lambda: gate.wait(SECONDS) and None)
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(service, Model(), FEW_BYTES))
    assert refused.value.status == 503


def test_where_the_models_thread_has_ended_a_small_image_is_refused_too(service: Any) -> None:
    service.engine.close()
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(service, Model(), SMALL))
    assert refused.value.status == 503


def test_of_two_results_the_first_counts() -> None:
    faults = []

    async def main() -> int:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        promise: Promise[int] = Promise()
        promise.keep(1)
        promise.fail(RuntimeError("too late"))
        result = await promise
        await asyncio.sleep(0)
        return result

    assert asyncio.run(main()) == 1
    assert faults == []
