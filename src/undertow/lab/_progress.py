"""Progress on standard error: a bar on a terminal, one line at the start and the end elsewhere.

Nobody may be reading it: what cannot be written is left out, and never ends a run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console

from undertow._quietly import quietly
from undertow.lab._cells import printable

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(
    title: str, *, total: int, done: int, shown: bool, what: str = "trials"
) -> Iterator[Advance]:
    """Yields a function to call with the number of trials that just finished.

    Args:
        title: what is running.
        total: how many trials there are.
        done: how many of them are finished already.
        shown: when false, nothing is written.
        what: they are called, where they are no trials.
    """
    if not shown:
        yield lambda count: None
        return
    title = printable(title)
    with quietly():
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

    console = _console()
    if not console.is_terminal:
        before = f", {done} of them stored already" if done else ""
        _line(console, f"{title}: {total} {what}{before}")
        start = time.monotonic()
        finished = done

        def advance(count: int) -> None:
            nonlocal finished
            finished += count

        yield advance
        how = "finished" if finished == total else f"{finished} of {total} {what}"
        _line(console, f"{title}: {how} in {time.monotonic() - start:.1f} s")
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def note(text: str, *, shown: bool) -> None:
    """One line on standard error."""
    if shown:
        _line(_console(), text)


def _console() -> Console:
    from rich.console import Console

    return Console(file=cast(IO[str], _Forgiving(sys.stderr)), highlight=False)


def _line(console: Console, text: str) -> None:
    said = "\n".join(printable(line) for line in text.split("\n"))
    console.print(said, soft_wrap=True, markup=False, emoji=False)


class _Forgiving:
    """A stream that takes what it is given, whether or not it can pass it on."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            cast(IO[str], self._stream).write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if there is something to."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            cast(IO[str], self._stream).flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
