"""What a command writes: its result on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undertow.lab import Document

# What a library call may raise when it cannot be done: one line, no traceback.
EXPECTED_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError)


@contextlib.contextmanager
def undisturbed(as_json: bool) -> Iterator[None]:
    """Keep standard output for the one JSON object, whatever code that is not ours prints."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def show(document: Document, as_json: bool) -> None:
    """A result, as a person at a terminal or a program reads it."""
    from undertow import lab

    if as_json:
        print(lab.as_json(document))
    else:
        lab.print_document(document)


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on a line."""
    print(json.dumps(content))


def complain(error: Exception | str) -> None:
    """Say in one line what went wrong."""
    print(f"undertow: {one_line(error)}", file=sys.stderr)


def one_line(error: Exception | str) -> str:
    """The message of an error, on one line, with what would move the cursor written out."""
    from undertow.lab import printable

    said = " ".join(part for line in str(error).split("\n") for part in line.split(" ") if part)
    return printable(said) or type(error).__name__
