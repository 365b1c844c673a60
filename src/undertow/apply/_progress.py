"""A bar with the time left, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from undertow._quietly import quietly
from undertow.lab import printable

Advance = Callable[[float], None]


@contextmanager
def work_bar(title: str, *, total: float, shown: bool) -> Iterator[Advance]:
    """Yields a function to call with the work that just finished; silent where not a terminal."""
    if not shown:
        yield lambda work: None
        return
    with quietly():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda work: None
        return

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(title), total=total)
        yield lambda work: bar.advance(task, work)
