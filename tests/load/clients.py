"""Clients that keep asking a server about images whose answers they know."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests import tiny_model

IMAGES = {
    "benign": tiny_model.jpeg((200, 60, 60)),
    "early": tiny_model.jpeg((60, 200, 60)),
    "pre": tiny_model.jpeg((60, 60, 200)),
}
GIVE_UP = 30  # seconds of trying again
LEAVE = 2  # seconds until a server that said that it stops has closed its port


@dataclass
class Tally:
    """What the clients saw. `failures`: an answer that came but was none, or a connection that broke."""

    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    versions: list[str | None] = field(default_factory=list)
    request_ids: set[str] = field(default_factory=set)


@contextmanager
def asking(
    url: str, clients: int = 4, *, again: bool = False, pause: float = 0, headers: dict[str, str] | None = None
) -> Iterator[Tally]:
    """Runs the clients until the block ends; each asks, waits for the answer, and asks about the next image.

    Args:
        url: the server.
        clients: how many.
        pause: seconds between an answer and the next request, where others need the processors too.
        headers: of every request.
        again: whether a request that failed is sent again, until it is answered or `GIVE_UP` has passed.
    """
    tally, lock, done = Tally(), threading.Lock(), threading.Event()

    def ask(client: httpx.Client, expected: str) -> None:
        deadline = time.monotonic() + GIVE_UP
        while True:
            try:
                answer = client.post("/predict", content=IMAGES[expected])
                failure = None if answer.status_code == 200 else str(answer.status_code)
            except httpx.TransportError as error:
                failure = type(error).__name__
            if failure is None:
                break
            with lock:
                tally.failures[failure] += 1
                if not again or time.monotonic() > deadline:
                    tally.lost += 1
                    return
            time.sleep(0.05)
        if answer.headers.get("connection") == "close":
            time.sleep(LEAVE)  # the server is stopping: as a load balancer, send it nothing more
        found = answer.json()
        with lock:
            tally.answered += 1
            tally.versions.append(found["model"]["version"])
            if found["class"] != expected:
                tally.wrong.append(f"{expected}: {found['class']}")
            if found["request_id"] in tally.request_ids:
                tally.wrong.append(f"{found['request_id']} twice")
            tally.request_ids.add(found["request_id"])

    def client() -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=20) as connection:
            while not done.is_set():
                for expected in IMAGES:
                    ask(connection, expected)
                    time.sleep(pause)

    with threads(client, clients, done):
        yield tally


@contextmanager
def threads(work: Callable[[], None], count: int, done: threading.Event) -> Iterator[None]:
    """So many threads at one work, which ends when `done` is set, at the block's end."""
    started = [threading.Thread(target=work) for _ in range(count)]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in started:
            thread.join()
