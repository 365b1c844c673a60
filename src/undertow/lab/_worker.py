"""A worker process: reads groups of trials from its standard input, answers on its standard output.

It is a session of its own, so that Ctrl-C at a terminal reaches the driver alone, and it does not
outlive the driver: the kernel ends it, also where a trial never gives the interpreter back.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import BinaryIO

_KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
_LEAKED = 1 << 30  # bytes that a worker may grow by before another takes its place


def work(driver: int) -> None:
    """Answer one group after the other until there are no more, for the process `driver`.

    An answer is what became of the group, or why it could not be read, and whether this process is
    still fit for another group.
    """
    _end_with(driver)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = _own_pipes()
    with contextlib.suppress(ValueError, OSError, RuntimeError):  # no standard error
        faulthandler.enable()
    import torch  # noqa: F401  # before any trial, so that each finds it in the same state

    from undertow.lab._group import failed, run_group

    before = _memory()
    with contextlib.suppress(EOFError, OSError):  # no more groups, or no more driver
        _send(answers, None)
        while True:
            content = pickle.load(requests)
            try:
                group = pickle.loads(content)
            except BaseException as error:
                answer: object = failed(error)
            else:
                answer = run_group(group)
            _send(answers, (answer, not _has_threads() and _memory() < before + _LEAKED))
    os._exit(0)  # whatever a trial has left running


def _end_with(driver: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)
    # It was gone before we asked. On Windows an environment's python is the child of a launcher.
    if os.name == "posix" and os.getppid() != driver:
        os._exit(1)


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the driver, out of the trials' reach, who read nothing and print to stderr."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(nothing, 1)
    if hasattr(os, "register_at_fork"):  # a child that outlives us must not seem to be us
        for pipe in (requests, answers):
            os.register_at_fork(after_in_child=partial(os.close, pipe.fileno()))
    return requests, answers


def _send(answers: BinaryIO, content: object) -> None:
    pickle.dump(content, answers)
    answers.flush()


def _has_threads() -> bool:
    """Whether a trial has left a thread that would run beside the next one."""
    ours = threading.current_thread()
    return any(not each.daemon and each is not ours for each in threading.enumerate())


def _memory() -> int:
    """What this process holds of the machine's memory, in bytes; zero where none can tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
