"""One budget of memory for what requests make the server hold: what is beyond is 503, what ends is given back."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from math import inf
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request

from leukdetect import cost
from leukdetect.contract import Decode
from serving import problems
from serving.inference.examine import DecodePool
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.request import budget as module
from serving.request import connections
from serving.request.budget import Budget
from serving.request.upload import COPIES, Buffered, body
from tests import bombs, tiny_model
from tests.server import serve
from tests.serving.request.small_app import LARGE, small_app

MOST = 2_000_000
HOW = Decode(size=32, behaviour="0" * 64)
HEAD = b"GET /small HTTP/1.1\r\nHost: x\r\nX-Long: "


@pytest.fixture
def budget() -> Budget:
    return Budget(MOST)


@pytest.fixture
def client(budget: Budget) -> Iterator[httpx.Client]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Budget]]:
        yield {"budget": budget}

    app = small_app(lifespan=lifespan)
    problems.install(app)

    @app.get("/allocates")
    async def allocates() -> None:
        raise MemoryError

    @app.post("/body")
    async def length(request: Request) -> int:
        async with body(request, Buffered(10**9, budget), 10**9, 30) as content:
            return len(content)

    with serve(app, http=connections.Connection) as client:
        yield client


def connected(client: httpx.Client, stack: ExitStack) -> socket.socket:
    url = client.base_url
    return stack.enter_context(socket.create_connection((url.host, url.port or 0), timeout=10))


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_heads_are_counted_and_the_one_too_many_is_told_why(client: httpx.Client, budget: Budget) -> None:
    with ExitStack() as stack:
        for _ in range(33):
            connected(client, stack).sendall(HEAD + b"x" * 60_000)
        eventually(lambda: budget.held > 33 * 60_000, "heads were not counted")
        one_more = connected(client, stack)
        one_more.sendall(HEAD + b"x" * 60_000)
        answer = one_more.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Requests hold all the memory that they may. Try again in a second." in answer
        assert client.get("/small").status_code == 200  # an ordinary request holds nothing worth counting
    eventually(lambda: budget.held == 0, "not given back")


def test_an_answer_that_is_not_read_is_counted_until_it_is_gone(client: httpx.Client, budget: Budget) -> None:
    with ExitStack() as stack:
        deaf = connected(client, stack)
        deaf.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: budget.held > LARGE / 2, "the answer was not counted")
        refused = client.post("/body", content=bytes(1000))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.get("/small").status_code == 200
    eventually(lambda: budget.held == 0, "not given back")
    assert len(client.get("/large").content) == LARGE
    assert client.post("/body", content=bytes(MOST // COPIES)).json() == MOST // COPIES
    eventually(lambda: budget.held == 0, "not given back")


def test_a_body_beyond_the_budget_is_told_why_and_given_back(client: httpx.Client, budget: Budget) -> None:
    refused = client.post("/body", content=bytes(MOST // COPIES + 1))
    assert refused.status_code == 503
    assert "hold all the memory" in refused.json()["detail"]
    assert client.post("/body", content=bytes(MOST // COPIES)).status_code == 200
    eventually(lambda: budget.held == 0, "not given back")


def test_memory_that_is_not_to_be_had_is_busy_and_no_fault(client: httpx.Client) -> None:
    answer = client.get("/allocates")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:leukdetect:problem:overloaded")


def test_pixels_that_do_not_fit_are_refused_and_those_that_do_are_decoded() -> None:
    file = bombs.saved("JPEG", (1000, 1000), "RGB")  # 12 bytes each where it has to be turned, and some
    apart = bombs.saved("PNG", (4000, 4000), "RGBA", compress_level=1)
    for most, status in ((15_000_000, 503), (20_000_000, 200)):
        budget = Budget(most)
        pool = DecodePool(1, 2, 40_000_000, Metrics().decoded_apart, budget)
        try:
            if status == 200:
                assert asyncio.run(pool.decode(file, HOW, inf)).header.width == 1000
            else:
                with pytest.raises(ProblemError, match="hold all the memory") as refused:
                    asyncio.run(pool.decode(file, HOW, inf))
                assert refused.value.status == status
            with pytest.raises(ProblemError, match=r"takes more than .* MB of memory") as costly:  # and always will
                asyncio.run(pool.decode(apart, HOW, inf))
            assert costly.value.status == 422
        finally:
            pool.close()
        assert budget.held == 0


def test_what_decodes_apart_takes_what_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(1_200_000_000)
    budget.take(600_000_000)
    pool = DecodePool(1, 2, 40_000_000, Metrics().decoded_apart, budget)
    file = bombs.saved("PNG", (4000, 4000), "RGBA", compress_level=1)
    try:
        with pytest.raises(ProblemError, match="hold all the memory"):
            asyncio.run(pool.decode(file, HOW, inf))
        budget.give_back(600_000_000)
        assert asyncio.run(pool.decode(file, HOW, inf)).header.width == 4000
    finally:
        pool.close()
    assert budget.held == 0


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (str(2 * 2**30), 2 * 2**30 - module.OWN),
        ("max", None),
        (str(2**29), module.LEAST),
        ("9223372036854771712", None),
    ],
)
def test_what_is_left_to_requests_is_what_the_containers_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, expected: int | None
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(f"{told}\n")
    monkeypatch.setattr(module, "_LIMITS", ("/nowhere", str(file)))
    machine = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert module.left() == (expected or max(module.LEAST, machine - module.OWN))


def test_little_address_space_limits_this_process_and_not_the_one_beside_it() -> None:
    budget = Budget(1000, here=100)
    with budget.taken(900, apart=True), budget.taken(100):
        assert budget.held == 1000
        for apart in (False, True):
            with pytest.raises(ProblemError), budget.taken(1, apart=apart):
                pass
    with budget.taken(100), pytest.raises(ProblemError), budget.taken(1):
        pass
    assert budget.held == 0


def test_images_pay_by_their_pixels() -> None:
    small, large = (cost.memory(bombs.saved("JPEG", size, "RGB")) for size in ((224, 224), (4000, 3000)))
    assert small
    assert large
    assert small < 5_000_000 < 140_000_000 < large < 170_000_000
    assert cost.memory(tiny_model.jpeg((1, 2, 3))) is not None
    assert cost.memory(bombs.saved("PNG", (8000, 5000), "RGBA", compress_level=1)) is None


def test_what_is_held_apart_counts_for_all_and_not_against_this_process() -> None:
    budget = Budget(100, here=60)
    with budget.taken(50, apart=True):
        budget.take(50)
        with pytest.raises(ProblemError, match="all the memory"):  # 100 in all, of which 50 here
            budget.take(1)
        budget.give_back(50)
    with pytest.raises(ProblemError, match="all the memory"):
        budget.take(61)
    budget.take(60)
