"""Work that is done again and again: it survives its own failures, and can be woken and stopped."""

import logging
import threading

import pytest

from serving.periodic import Periodic


def test_a_call_that_fails_is_logged_and_the_next_comes(caplog: pytest.LogCaptureFixture) -> None:
    calls, enough = [], threading.Event()

    def work() -> None:
        calls.append(1)
        if len(calls) == 3:
            enough.set()
        raise ValueError

    periodic = Periodic("drift", 0.01, work)
    periodic.start()
    assert enough.wait(10)
    periodic.stop()
    after = len(calls)
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR] == ["drift failed"] * after


def test_without_a_pause_it_waits_until_it_is_woken_and_a_stop_ends_it_without_a_call() -> None:
    called = threading.Event()
    periodic = Periodic("updates", 0, called.set)
    periodic.start()
    assert not called.wait(0.1)
    periodic.wake()
    assert called.wait(10)
    called.clear()
    periodic.stop()
    assert not called.is_set()


def test_a_thread_that_ends_unasked_is_not_alive_any_more(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        raise SystemExit

    periodic = Periodic("feedback", 0.01, work)
    before = periodic.alive  # it is yet to begin
    assert before
    periodic.start()
    periodic._thread.join(10)
    assert not periodic.alive
    assert "the thread feedback has ended" in caplog.text
    stopped = Periodic("drift", 0.01, lambda: None)
    stopped.start()
    stopped.stop()
    assert stopped.alive  # as it was asked to


def test_a_call_that_does_not_end_is_seen() -> None:
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(30)

    periodic = Periodic("updates", 0.01, work)
    assert periodic.busy_seconds == 0
    periodic.start()
    assert begun.wait(10)
    first = periodic.busy_seconds
    assert 0 < first < periodic.busy_seconds
    release.set()
    periodic.stop()
    assert periodic.busy_seconds == 0
