"""Ctrl-C, SIGTERM and SIGHUP during a run: noted, acted on where nothing is half done, passed on.

A second one ends the process at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # those that a platform has


class Stop:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._raises = False

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    @contextlib.contextmanager
    def at_any_moment(self) -> Iterator[None]:
        """A block that a signal interrupts with KeyboardInterrupt, as it does outside of a run."""
        self._raises = True
        try:
            if self.asked():
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """A handler of signals: the first is noted, a second ends the process."""
        if self.asked():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._number = number
        if self._raises:
            raise KeyboardInterrupt

    def pass_on(self) -> None:
        """Let the signal take its usual course, which does not go on with the run."""
        if self._number is not None:
            signal.raise_signal(self._number)
            raise KeyboardInterrupt  # whoever handles the signal did not end the run


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """A block that looks itself when it is to stop; afterwards the signal takes its usual course.

    Signals that are ignored stay so. In another thread than the main one, which alone may handle
    signals, none is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in numbers}
    noted = {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in noted:
            signal.signal(number, stop.note)
            _only_once(number)
        yield stop
    finally:
        for number, handler in noted.items():
            signal.signal(number, handler)
        stop.pass_on()


def _only_once(number: int) -> None:
    """Let the system itself end the process at the second signal, where it can be told to.

    Python acts on a signal between two of its instructions, which in one long call of a library may
    be a while.
    """
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "sysv_signal"):
        for function in (libc.signal, libc.sysv_signal):
            function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        try:
            libc.sysv_signal(number, libc.signal(number, None))  # between them it would be the last
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
