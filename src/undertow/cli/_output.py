"""What a command writes: its result on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from undertow.lab import Document

# What a library call may raise when it cannot be done: one line, no traceback.
EXPECTED_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def open_streams() -> None:
    """See that the three standard streams are there, so that no file takes the place of one.

    Those that were closed read and take nothing.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that it cannot show is no error


class _Closed(io.StringIO):
    """Standard output that was closed: what is written shows up as an error in the end."""

    def flush(self) -> None:
        """As a write to the closed stream would."""
        if self.getvalue():
            self.seek(0)
            self.truncate()
            raise OSError(errno.EBADF, "standard output is closed")


def finish_output() -> int:
    """Hand on what was printed; returns the exit status of that."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody to tell
        leave(sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has had enough
        leave(sys.stdout)
        return 141
    except OSError as error:
        leave(sys.stdout)
        complain(f"the result could not be written to standard output: {error.strerror or error}")
        return 1
    return 0


def leave(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that nothing tries in vain when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


@contextlib.contextmanager
def undisturbed(as_json: bool) -> Iterator[None]:
    """Keep standard output for the one JSON object, whatever code that is not ours prints.

    What it starts, or a library of its own, writes to the file descriptor, past `sys.stdout`.
    """
    if not as_json:
        yield
        return
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:
        kept = None
    try:
        if kept is not None:
            os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


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


def complain(error: BaseException | str) -> None:
    """Say in one line what went wrong, if there is somebody to say it to."""
    with contextlib.suppress(OSError, ValueError):
        print(f"undertow: {one_line(error)}", file=sys.stderr, flush=True)


def remark(words: str) -> None:
    """Say in one line how something was taken."""
    print(f"undertow: {words}", file=sys.stderr)


def one_line(error: BaseException | str) -> str:
    """The message of an error, on one line, with what would move the cursor written out."""
    from undertow.lab import printable

    try:
        words = str(error)
    except Exception:
        words = ""
    said = " ".join(part for line in words.split("\n") for part in line.split(" ") if part)
    return printable(said) or type(error).__name__
