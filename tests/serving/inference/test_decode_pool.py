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
from leukdetect.decoding import Decoded
from serving.inference import examine
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


def examined(service: Any, model: Any, data: bytes) -> Coroutine[Any, Any, tuple[Decoded, Scores, float]]:
    return asyncio.wait_for(examine.examine(service, model, data, deadline=time.perf_counter() + SECONDS), SECONDS)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


SMALL = tiny_model.jpeg((1, 2, 3))


def test_an_image_is_decoded_and_scored(service: Any, gate: threading.Event) -> None:
    gate.set()
    image, scores, decode_seconds = asyncio.run(examined(service, Model(), SMALL))
    assert image.pixels.shape == (32, 32, 3)
    assert scores.outputs["unlikeness"] == 0
    assert decode_seconds > 0


def test_a_bomb_in_few_bytes_costs_no_pixel(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("a pixel was decoded"))
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(service, Model(), png(np.zeros((2000, 2000), np.uint8))))
    assert refused.value.status == 413


@pytest.mark.parametrize("data", [b"no image", b"no image" * 10_000], ids=["few bytes", "many bytes"])
def test_what_cannot_be_decoded_never_reaches_the_model(service: Any, data: bytes) -> None:
    model = Model()
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(service, model, data))
    assert (refused.value.status, model.runs) == (415, 0)


def test_an_image_that_is_cancelled_before_its_turn_is_never_decoded(
    service: Any, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    decode = examine.decode

    def noted(data: bytes, *arguments: Any) -> Decoded:
        decoded.append(data)
        return decode(data, *arguments)

    monkeypatch.setattr(examine, "decode", noted)
    cancelled, after = (tiny_model.jpeg((shade, 2, 3)) for shade in (10, 20))

    async def main() -> None:
        service.pool.submit(lambda: gate.wait(SECONDS) and None)  # the only thread is busy now
        task = asyncio.create_task(examined(service, Model(), cancelled))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await examined(service, Model(), after)

    asyncio.run(main())
    assert decoded == [after]


def test_an_image_is_refused_where_the_pool_is_full(service: Any, gate: threading.Event) -> None:
    for _ in range(3):  # one that runs, and two that wait
        service.pool.submit(lambda: gate.wait(SECONDS) and None)
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(service, Model(), SMALL))
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
