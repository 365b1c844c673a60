"""Progress on standard error: a bar on a terminal, one line at the start and the end elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from undertow.lab._cells import printable

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(title: str, *, total: int, done: int, shown: bool) -> Iterator[Advance]:
    """Yields a function to call with the number of trials that just finished.

    Args:
        title: what is running.
        total: how many trials there are.
        done: how many of them are finished already.
        shown: when false, nothing is written.
    """
    if not shown:
        yield lambda count: None
        return
    title = printable(title)
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        before = f", {done} of them stored already" if done else ""
        console.print(f"{title}: {total} trials{before}", soft_wrap=True, markup=False)
        start = time.monotonic()
        yield lambda count: None
        took = f"{time.monotonic() - start:.1f} s"
        console.print(f"{title}: finished in {took}", soft_wrap=True, markup=False)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trials"),
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
        from rich.console import Console

        said = "\n".join(printable(line) for line in text.split("\n"))
        Console(stderr=True, highlight=False).print(said, soft_wrap=True, markup=False)
