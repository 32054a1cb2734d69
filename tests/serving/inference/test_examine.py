"""The decode pool: its bound, what becomes of what waits, and who decodes what."""

import asyncio
import functools
import io
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukdetect import apart, images
from leukdetect.contract import Decode
from leukdetect.decoding import Decoded, decode
from serving.inference import examine as module
from serving.inference.engine import Engine
from serving.inference.examine import DecodePool, examine
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.request.budget import Budget
from tests import bombs, tiny_model

SECONDS = 10
HOW = Decode(size=32, behaviour="0" * 64)
LATER = math.inf  # a deadline that never comes


class Decoder:
    """Notes what is decoded, and decodes when the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[bytes] = []

    def __call__(self, data: bytes, *arguments: Any) -> Decoded:
        self.seen.append(data)
        assert self.gate.wait(SECONDS)
        return decode(data, *arguments)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    decoder = Decoder()
    monkeypatch.setattr(module, "decode", decoder)
    yield decoder
    decoder.gate.set()


@pytest.fixture
def pool(decoder: Decoder) -> Iterator[DecodePool]:
    pool = DecodePool(1, 2, 1_000_000, Metrics().decoded_apart, Budget(10**10))
    yield pool
    decoder.gate.set()
    pool.close()


def file(shade: int) -> bytes:
    return tiny_model.jpeg((shade, 2, 3))


def test_one_more_than_may_wait_is_refused_and_the_rest_decoded_in_order(pool: DecodePool, decoder: Decoder) -> None:
    async def main() -> None:
        decoder.gate.clear()
        tasks = [asyncio.create_task(pool.decode(file(10 * number), HOW, LATER)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as refused:
            await pool.decode(file(99), HOW, LATER)
        assert refused.value.status == 503
        decoder.gate.set()
        await asyncio.gather(*tasks)
        await pool.decode(file(99), HOW, LATER)  # then there is room again

    asyncio.run(asyncio.wait_for(main(), SECONDS))
    assert decoder.seen == [file(0), file(10), file(20), file(99)]


class Model:
    """Answers when the gate opens."""

    seconds_an_image, side_by_side = 0.001, False
    contract = SimpleNamespace(decode=HOW)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.runs = 0

    def run(self, pixels: np.ndarray, outputs: Sequence[str], *, beside: bool) -> list[np.ndarray]:
        self.started.set()
        assert self.gate.wait(SECONDS)
        self.runs += 1
        return [np.zeros(len(pixels)) for _ in outputs]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine({"predict": 10, "explain": 10, "shadow": 10}, 0.001, Metrics(), 2)
    yield engine
    engine.close()


@pytest.fixture
def examined(pool: DecodePool, engine: Engine) -> Callable[[Any, bytes], Coroutine[Any, Any, Any]]:
    """Looks at a file with a model, as a route does."""

    def examined(model: Any, data: bytes) -> Coroutine[Any, Any, Any]:
        deadline = time.perf_counter() + SECONDS
        return asyncio.wait_for(examine(pool, engine, model, data, deadline), SECONDS)

    return examined


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


Examined = Callable[[Any, bytes], Coroutine[Any, Any, Any]]


def test_an_image_is_decoded_and_scored(examined: Examined) -> None:
    image, scores, decode_seconds = asyncio.run(examined(Model(), file(1)))
    assert image.pixels.shape == (32, 32, 3)
    assert scores.outputs["unlikeness"] == 0
    assert decode_seconds > 0


def test_a_bomb_in_few_bytes_costs_no_pixel(examined: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("a pixel was decoded"))
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(Model(), png(np.zeros((2000, 2000), np.uint8))))
    assert refused.value.status == 413


@pytest.mark.parametrize("data", [b"no image", b"no image" * 10_000], ids=["few bytes", "many bytes"])
def test_what_cannot_be_decoded_never_reaches_the_model(examined: Examined, data: bytes) -> None:
    model = Model()
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(model, data))
    assert (refused.value.status, model.runs) == (415, 0)


def test_an_image_that_is_cancelled_before_its_turn_is_never_decoded(examined: Examined, decoder: Decoder) -> None:
    async def main() -> None:
        decoder.gate.clear()
        first = asyncio.create_task(examined(Model(), file(0)))  # the only thread is busy now
        task = asyncio.create_task(examined(Model(), file(10)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        decoder.gate.set()
        await first
        await examined(Model(), file(20))

    asyncio.run(main())
    assert decoder.seen == [file(0), file(20)]


def test_an_image_that_is_cancelled_while_it_is_decoded_is_never_computed(examined: Examined, decoder: Decoder) -> None:
    model = Model()

    async def main() -> None:
        decoder.gate.clear()
        task = asyncio.create_task(examined(model, file(0)))
        while not decoder.seen:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        decoder.gate.set()
        await examined(model, file(10))

    asyncio.run(main())
    assert model.runs == 1


def test_where_the_models_thread_has_ended_an_image_is_refused(examined: Examined, engine: Engine) -> None:
    engine.close()
    with pytest.raises(ProblemError) as refused:
        asyncio.run(examined(Model(), file(1)))
    assert refused.value.status == 503


def results(metrics: Metrics) -> dict[str, float]:
    [family] = metrics.decoded_apart.collect()
    return {sample.labels["result"]: sample.value for sample in family.samples}


def test_what_may_cost_much_has_few_places_and_ends_with_its_deadline_or_its_client() -> None:
    bomb, honest = bombs.png_of_empty_chunks(1_600_000), bombs.saved("PNG", (1000, 1000), "RGBA", pnginfo=forty_texts())
    metrics = Metrics()
    pool = DecodePool(1, 10, 40_000_000, metrics.decoded_apart, Budget(10**10))

    async def main() -> None:
        attacks = [asyncio.create_task(pool.decode(bomb, HOW, LATER)) for _ in range(5)]
        await asyncio.sleep(0.2)
        with pytest.raises(ProblemError, match="Too many images wait to be decoded") as refused:
            await pool.decode(bomb, HOW, LATER)
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        assert (await pool.decode(file(10), HOW, LATER)).header.width == 48  # an ordinary one does not wait for them
        for attack in attacks:
            attack.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)
        assert (await pool.decode(honest, HOW, LATER)).header.width == 1000
        with pytest.raises(ProblemError) as late:
            await pool.decode(bomb, HOW, time.perf_counter() + 0.3)
        assert late.value.status == 504
        assert (await pool.picture(honest, 64, time.perf_counter() + SECONDS)).size == (64, 64)
        with pytest.raises(ProblemError) as broken:
            await pool.decode(honest[:5000], HOW, LATER)
        assert broken.value.status == 422

    try:
        asyncio.run(asyncio.wait_for(main(), 3 * SECONDS))
    finally:
        pool.close()
    assert results(metrics) == {"refused": 1, "abandoned": 5, "expired": 1, "decoded": 2, "unusable": 1}


def forty_texts() -> PngInfo:
    info = PngInfo()
    for number in range(50):
        info.add_text(f"text {number}", "…")
    return info


def test_over_its_budget_an_image_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Ask", functools.partial(apart.Ask, seconds=1))
    metrics = Metrics()
    pool = DecodePool(1, 10, 40_000_000, metrics.decoded_apart, Budget(10**10))
    try:
        with pytest.raises(ProblemError, match="more than 1 s of processor time") as refused:
            asyncio.run(pool.decode(bombs.png_of_profiles(3_000), HOW, LATER))
    finally:
        pool.close()
    assert (refused.value.status, refused.value.code) == (422, "costly-image")
    assert results(metrics) == {"over_budget": 1}
