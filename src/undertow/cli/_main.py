"""Which commands there are, how one is found and called, and with which status it ends."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from undertow.cli._output import EXPECTED_ERRORS, complain
from undertow.cli._words import HelpShown, UsageError, close_to

# In the order in which they are shown. The command `inspect` is the module `_inspect`, imported
# when it is called; to add a command, write its module (see `Command`) and name it here.
COMMANDS = (
    *("inspect", "rescale", "forecast"),
    *("reproduce", "claims", "resume", "report", "new"),
)

_LEAD = """\
usage: undertow COMMAND ...

Measure, predict, use and reproduce the implicit bias of gradient-based
training.
"""
_TAIL = """\
Every command has --help; that of `undertow reproduce CLAIM` shows the claim's
knobs. Every command has --json: one JSON object on standard output, and
progress on standard error. `undertow --version` says which version this is.

Exit status: 0 done, 1 could not be done, 2 wrong usage, 3 --expect not met.
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
    if arguments is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal cannot show is no error
    command, *words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    try:
        status = _run(command, words)
        sys.stdout.flush()
        return status
    except UsageError as error:
        complain(error)
        return 2
    except HelpShown:
        return 0
    except KeyboardInterrupt:
        return 130  # `lab.run` has said how to go on
    except BrokenPipeError:  # whoever reads, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except EXPECTED_ERRORS as error:
        complain(error)
        return 1


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
    width = max(map(len, usages.values()))
    lines = [f"  {usages[name]:<{width}}  {module.SUMMARY}" for name, module in modules.items()]
    return "\n".join([_LEAD, *lines, "", _TAIL.rstrip()])
