"""Which commands there are, how one is found and called, and with which status it ends."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Protocol, cast

from undertow.cli._help import HelpShown, program, terminal_width
from undertow.cli._output import (
    EXPECTED_ERRORS,
    complain,
    finish_output,
    leave,
    one_line,
    open_streams,
)
from undertow.cli._words import UsageError, close_to

# In the order in which they are shown. The command `inspect` is the module `_inspect`, imported
# when it is called; to add a command, write its module (see `Command`) and name it here.
COMMANDS = (
    *("inspect", "rescale", "forecast"),
    *("reproduce", "claims", "resume", "report", "new"),
)

_LEAD = """\
usage: {program} COMMAND ...

Measure, predict, use and reproduce the implicit bias of gradient-based
training.
"""
_TAIL = """\
Every command has --help; that of `undertow reproduce CLAIM` shows the claim's
knobs. Every command has --json: one JSON object on standard output, and
progress on standard error. `undertow --version` says which version this is.

Exit status: 0 done, 1 could not be done or trials failed, 2 wrong usage,
3 --expect not met.
"""


class Command(Protocol):
    """What the module of a command holds; it imports nothing heavy before `run` needs it.

    Attributes:
        SYNOPSIS: the words after the command that matter most.
        SUMMARY: what it does, in a line of `undertow --help`.
    """

    SYNOPSIS: str
    SUMMARY: str

    def run(self, words: Sequence[str]) -> int:
        """Do what the words after the command say; returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (see `undertow --help`)."""
    if arguments is None:
        open_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _ended_by_signals():
            status = _status(words or ["--help"])
            return finish_output() or status
    except KeyboardInterrupt as stopped:  # of trials, `lab.run` has said how to go on
        if stopped.args:
            complain(stopped)
        return 128 + (stopped.number if isinstance(stopped, _Ended) else signal.SIGINT)


def _status(words: Sequence[str]) -> int:
    try:
        return _run(words[0], words[1:])
    except UsageError as error:
        complain(error)
        return 2
    except HelpShown:
        return 0
    except BrokenPipeError:
        leave(sys.stdout)
        return 141
    except EXPECTED_ERRORS as error:
        complain(error)
        return 1
    except Exception as error:  # a fault of ours; where it is tells us, not whoever met it
        if os.environ.get("UNDERTOW_TRACEBACK"):
            raise
        complain(
            f"internal error: {type(error).__name__}: {one_line(error)}; with UNDERTOW_TRACEBACK=1"
            " in the environment it says where, for a bug report"
        )
        return 1


class _Ended(KeyboardInterrupt):
    """Another signal than Ctrl-C that asks a process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind what is being done, as Ctrl-C does, where they would end it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended(number)

    asking = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in asking if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _run(command: str, words: Sequence[str]) -> int:
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command == "--version":
        from undertow import __version__

        print(f"undertow {__version__}")
        return 0
    if command not in COMMANDS:
        raise UsageError(f"no command {command!r}; {close_to(command, COMMANDS)}")
    return _module(command).run(words)


def _module(command: str) -> Command:
    return cast(Command, importlib.import_module(f"undertow.cli._{command}"))


def _help() -> str:
    modules = {command: _module(command) for command in COMMANDS}
    usages = {name: f"undertow {name} {module.SYNOPSIS}" for name, module in modules.items()}
    indent = max(map(len, usages.values())) + 4
    lines = [f"  {usage:<{indent - 2}}{modules[name].SUMMARY}" for name, usage in usages.items()]
    room = terminal_width()
    if max(map(len, lines)) > room:
        inner = " " * 4
        lines = [
            f"  {usage}\n"
            + textwrap.fill(
                modules[name].SUMMARY, room, initial_indent=inner, subsequent_indent=inner
            )
            for name, usage in usages.items()
        ]
    lead, tail = (_filled(text, room) for text in (_LEAD.format(program=program()), _TAIL))
    return "\n".join([lead, "", *lines, "", tail])


def _filled(text: str, width: int) -> str:
    """Paragraphs in lines of at most `width` columns."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)
