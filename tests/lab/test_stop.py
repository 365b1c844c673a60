"""Signals during a run: noted once, passed on afterwards, and handlers as they were."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from undertow.lab._stop import stoppable

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextlib.contextmanager
def heard(number: signal.Signals) -> Iterator[list[int]]:
    calls: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        calls.append(number)

    before = signal.signal(number, handler)
    try:
        yield calls
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted_then_passed_on_and_ends_the_run(number: signal.Signals) -> None:
    def run() -> None:
        with stoppable() as stop:
            signal.raise_signal(number)
            assert stop.asked()
            assert calls == []

    with heard(number) as calls:
        with pytest.raises(KeyboardInterrupt):
            run()
        assert calls == [number]


@pytest.mark.parametrize("number", NUMBERS)
def test_where_nothing_is_half_done_it_interrupts(number: signal.Signals) -> None:
    reached = []

    def run() -> None:
        with stoppable() as stop:
            with contextlib.suppress(KeyboardInterrupt), stop.at_any_moment():
                signal.raise_signal(number)
                reached.append("after the signal")
            with contextlib.suppress(KeyboardInterrupt), stop.at_any_moment():
                reached.append("in a block begun after it")
            reached.append("the end")

    with heard(number), pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["the end"]


def test_without_a_signal_nothing_is_changed() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with stoppable() as stop, stop.at_any_moment():
        assert not stop.asked()
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_than_the_main_one_handles_none() -> None:
    asked: list[bool] = []

    def block() -> None:
        with stoppable() as stop:
            asked.append(stop.asked())

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert asked == [False]


TWICE = """
import signal
from undertow.lab._stop import stoppable
with stoppable():
    signal.raise_signal(signal.SIGTERM)
    print("noted", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("not reached")
"""


def test_a_second_one_ends_the_process_at_once() -> None:
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "noted\n")
