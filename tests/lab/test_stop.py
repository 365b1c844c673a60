"""Signals during a run: noted once, passed on afterwards, and handlers as they were."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
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


def test_a_run_does_without_what_windows_lacks(tmp_path: Path) -> None:
    """Of signals, locks, process groups and calls into the C library."""
    program = """
import ctypes, os, signal, sys
import polars, torch
import toy_study
for module, name in [
    (signal, "SIGHUP"), (signal, "SIGALRM"), (signal, "SIGCHLD"), (signal, "SIGUSR1"),
    (signal, "SIGPIPE"), (signal, "SIGKILL"), (signal, "pthread_sigmask"), (os, "killpg"),
    (os, "waitid"), (os, "sysconf"), (os, "register_at_fork"), (os, "O_NOFOLLOW"),
    (os, "O_NONBLOCK"), (os, "mkfifo"), (os, "setsid"),
]:
    delattr(module, name)
for name in [name for name in sys.modules if name.startswith("undertow")]:
    del sys.modules[name]
sys.modules["fcntl"] = None
real = ctypes.CDLL
def library(name, *rest, **more):
    if name is None and "undertow" in sys._getframe(1).f_code.co_filename:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return real(name, *rest, **more)
ctypes.CDLL = library
sys.modules.pop("toy_study")
import toy_study
from toy_study import Walk
from undertow import lab
import undertow.lab._stop as stop
class Windows:
    name = "nt"
    __getattr__ = staticmethod(lambda name: getattr(os, name))
stop.os = Windows()
for engine in ("inline", "local"):
    found = lab.run(toy_study.walks(Walk(0), Walk(1)), lab.Store(sys.argv[1] + engine),
                    engine=engine, progress=False)
    assert len(found.records["walks"]["seed"].unique()) == 2, found
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
